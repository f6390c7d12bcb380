"""Lists of layer records on the compiled engine against their float64 twins in plain torch."""

from __future__ import annotations

import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import record_twins
import torch
from flows.test_frozen import assert_exact, results
from helpers import assert_names, strided

from flowinv_fast import ops
from flowinv_fast._base import backend
from flowinv_fast.ops.frozen_flow import (
    PRECISIONS,
    CouplingRecord,
    FactorOutRecord,
    FrozenEngine,
    MixingRecord,
    SqueezeRecord,
    StandardiseRecord,
    frozen_flow_decode,
    frozen_flow_encode,
)

OPS = torch.ops.flowinv_fast
EVEN, ODD, FIRST, SECOND = ops.MASKS

# A layer is S (standardise), Q (squeeze), F (factor out), M (mix) or (mask, hidden, blocks[, True
# for an inverse coupling]). Between them: odd sizes, one pixel, one channel and channels off the
# groups of four, widths and depths that change within a plan, nothing but moves, and no layer.
PRIOR = (SECOND, 5, 0, True)
STEP = ["M", (FIRST, 20, 1), "M", (SECOND, 20, 1)]
HALF = ["Q", PRIOR, "F"]
PLANS = {
    "glow": (
        (3, 8, 12),
        ["S", (EVEN, 20, 1), (ODD, 20, 1), "Q", *STEP, (SECOND, 7, 1, True), "F", (EVEN, 33, 2)],
    ),
    "priors": ((1, 12, 4), [(ODD, 16, 1), *HALF, "M", (EVEN, 3, 0), *HALF, "S", (EVEN, 17, 1)]),
    "mixed": ((5, 3, 7), ["M", (EVEN, 4, 0, True), "M", (ODD, 18, 1, True)]),
    "large": ((2, 30, 18), ["S", "M", (FIRST, 16, 1), "M", (ODD, 16, 1, True), "F"]),
    "pixel": ((7, 1, 1), ["M", "S", (EVEN, 2, 1)]),
    "moves": ((2, 4, 4), ["Q", "F", "Q", "F", "F"]),
    "nothing": ((2, 3, 1), []),
}
each_plan = pytest.mark.parametrize("name", PLANS)
both_ways = pytest.mark.parametrize("decode", [True, False])


def convolution(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5, 0.1 * torch.randn(outputs)


def coupling(channels, mask, hidden, blocks, inverse=False, gain=0.3) -> CouplingRecord:
    gains = channels // 2 if mask in (FIRST, SECOND) else channels
    widths = [gains, *[hidden] * (2 * blocks + 1), 2 * gains]
    convs = [convolution(i, o) for i, o in zip(widths, widths[1:])]
    return CouplingRecord(mask, (2 * torch.rand(gains) - 1) * gain, convs, inverse)


def mixing(channels: int) -> MixingRecord:
    """A rotation, stretched."""
    rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
    weight = rotation * (0.3 * torch.randn(channels)).exp()
    return MixingRecord(weight, float(torch.linalg.slogdet(weight.double())[1]))


def records_of(name: str) -> tuple[tuple[int, int, int], list]:
    """Shape of the images, and the plan's layers with random weights."""
    shape, layers = PLANS[name]
    (c, h, w), records = shape, []
    for layer in layers:
        if layer == "S":
            records.append(StandardiseRecord(torch.randn(c, h, w), 0.5 + torch.rand(c, h, w)))
        elif layer == "Q":
            records.append(SqueezeRecord())
            c, h, w = 4 * c, h // 2, w // 2
        elif layer == "F":
            records.append(FactorOutRecord())
            c //= 2
        else:
            records.append(mixing(c) if layer == "M" else coupling(c, *layer))
    return shape, records


def applied(engine: FrozenEngine, decode: bool):
    apply = frozen_flow_decode if decode else frozen_flow_encode
    return lambda variable: apply(variable, engine)


def twin(engine: FrozenEngine, records, decode: bool):
    if decode:
        return lambda z: record_twins.decode(z, records, engine.shape)
    return lambda x: record_twins.encode(x, records)


def problem(engine: FrozenEngine, decode: bool, batch: int):
    """A variable, and weights of the outputs in a loss."""
    sides = [(batch, *engine.shape), (batch, engine.n)]
    variable, out = sides[::-1] if decode else sides
    return torch.randn(variable), (torch.randn(out), torch.randn(batch))


def errors(engine: FrozenEngine, records, decode: bool, batch: int, device="cpu") -> torch.Tensor:
    """(3, B): each image's relative error against the twin, worst over the tensor, in the output,
    the log-determinant (relative to one at least) and the gradient."""
    variable, weights = problem(engine, decode, batch)
    double = [w.double() for w in weights]
    want = results(twin(engine, records, decode), variable.double(), double)
    got = results(applied(engine, decode), variable.to(device), [w.to(device) for w in weights])
    assert [g.shape for g in got] == [w.shape for w in want]
    worst = lambda t: t.reshape(batch, -1).abs().amax(1) if batch else t.new_zeros(0)
    floors = (0, 1, 0)
    found = zip(got, want, floors)
    return torch.stack([worst(g.cpu().double() - w) / worst(w).clamp_min(f) for g, w, f in found])


@each_plan
@both_ways
def test_equals_the_float64_twin(name, decode, device):
    for _ in range(3):
        shape, records = records_of(name)
        engine = FrozenEngine(shape, records, device=device)
        found = [errors(engine, records, decode, batch, device) for batch in (0, 1, 3, 3, 3)]
        assert found[0].shape == (3, 0)
        assert_exact(torch.cat(found, 1), 2e-5)


@each_plan
def test_decode_inverts_encode(name, device):
    shape, records = records_of(name)
    engine = FrozenEngine(shape, records, device=device)
    x = torch.randn(3, *shape, device=device)
    z, logdet = frozen_flow_encode(x, engine)
    back, opposite = frozen_flow_decode(z, engine)
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(opposite, -logdet, atol=1e-4, rtol=1e-4)


@both_ways
def test_the_other_precisions(decode):
    """tf32 is fp32 on a CPU; bf16 rounds the products of the couplings, and nothing of a mixing."""
    shape, records = records_of("glow")
    variable, weights = problem(FrozenEngine(shape, records), decode, 3)
    found = {}
    for precision in PRECISIONS if backend._C.cpu_bf16() else ("fp32", "tf32"):
        engine = FrozenEngine(shape, records, precision)
        found[precision] = results(applied(engine, decode), variable, weights)
    assert all(map(torch.equal, found["fp32"], found["tf32"]))
    if "bf16" not in found:
        assert_names("precision", lambda: FrozenEngine(shape, records, "bf16"))
        return
    assert not torch.equal(found["fp32"][0], found["bf16"][0])
    torch.testing.assert_close(found["fp32"][0], found["bf16"][0], atol=0.1, rtol=0.1)
    moves = [mixing(3), SqueezeRecord(), mixing(12), FactorOutRecord()]
    engines = (FrozenEngine((3, 4, 4), moves, precision) for precision in ("fp32", "bf16"))
    assert torch.equal(*(frozen_flow_encode(torch.ones(2, 3, 4, 4), e)[0] for e in engines))


def test_an_inverse_coupling_encodes_as_the_plain_one_decodes():
    plain = coupling(4, SECOND, 8, 1)
    turned = CouplingRecord(plain.mask, plain.gain, plain.convs, inverse=True)
    x = torch.randn(3, 4, 5, 6)
    got = frozen_flow_encode(x, FrozenEngine((4, 5, 6), [turned]))
    want = frozen_flow_decode(x.flatten(1), FrozenEngine((4, 5, 6), [plain]))
    assert torch.equal(got[0], want[0].flatten(1)) and torch.equal(got[1], want[1])


def test_a_prior_that_knows_nothing_leaves_the_latents_alone():
    prior = coupling(4, SECOND, 8, 1, inverse=True, gain=0)
    prior.convs[-1][0][2:] = 0
    prior.convs[-1][1][2:] = 0
    x = torch.randn(2, 4, 4, 4)
    for records in ([prior, FactorOutRecord()], [FactorOutRecord()]):
        z, logdet = frozen_flow_encode(x, FrozenEngine((4, 4, 4), records))
        assert torch.equal(z, torch.cat([x[:, 2:].flatten(1), x[:, :2].flatten(1)], 1))
        assert torch.equal(logdet, torch.zeros(2))


@pytest.mark.parametrize("name", ["glow", "priors", "large"])
@both_ways
def test_any_batch_thread_count_and_thread_give_the_same_bits(name, decode):
    shape, records = records_of(name)
    engine, before = FrozenEngine(shape, records), torch.get_num_threads()
    variable, weights = problem(engine, decode, 9)
    run = lambda part=slice(None): results(
        applied(engine, decode), variable[part], (weights[0][part], weights[1][part])
    )
    want = run()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, want, run()))
    finally:
        torch.set_num_threads(before)
    i = random.randrange(9)
    assert all(torch.equal(a[i : i + 1], b) for a, b in zip(want, run(slice(i, i + 1))))
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: run(), range(8)):
            assert all(map(torch.equal, want, got))


def test_what_is_saved_is_determined_to_the_last_byte():
    shape, records = records_of("mixed")
    engine = FrozenEngine(shape, records)
    x = torch.randn(3, *shape)
    first, second = (OPS.frozen_flow_encode(x, x[:0], engine.handle)[2] for _ in range(2))
    assert first.shape == (3, engine.saved_bytes // 8) and torch.equal(first, second)
    assert OPS.frozen_flow_encode(x, None, engine.handle)[2].shape == (3, 0)


def test_strides_do_not_matter():
    shape, records = records_of("glow")
    engine, x = FrozenEngine(shape, records), torch.randn(3, *records_of("glow")[0])
    for a, b in zip(frozen_flow_encode(strided(x), engine), frozen_flow_encode(x, engine)):
        assert torch.equal(a, b)


# --- the rules of an operation -------------------------------------------------------------------


@both_ways
def test_opcheck(decode):
    shape, records = records_of("glow")
    engine = FrozenEngine(shape, records)
    variable, (grad, grad_logdet) = problem(engine, decode, 2)
    name = "frozen_flow_decode" if decode else "frozen_flow_encode"
    op, backward = getattr(OPS, name).default, getattr(OPS, f"{name}_backward").default
    torch.library.opcheck(op, (variable, None, engine.handle))
    torch.library.opcheck(op, (variable, variable[:0].clone(), engine.handle))
    leaf = variable.clone().requires_grad_()
    torch.library.opcheck(op, (leaf, variable[:0].clone(), engine.handle))
    saved = op(variable, variable[:0].clone(), engine.handle)[2]
    torch.library.opcheck(backward, (grad, grad_logdet, saved, None, engine.handle))


@both_ways
def test_compiles_without_a_graph_break(decode):
    shape, records = records_of("priors")
    engine = FrozenEngine(shape, records)
    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(
            applied(engine, decode), fullgraph=True, backend="aot_eager", dynamic=dynamic
        )
        for batch in (3, 2):
            variable, weights = problem(engine, decode, batch)
            want = results(applied(engine, decode), variable, weights)
            assert all(map(torch.equal, results(compiled, variable, weights), want))
            with torch.no_grad():
                assert torch.equal(compiled(variable)[0], want[0])


@both_ways
def test_vmap_folds_into_the_batch(decode):
    shape, records = records_of("glow")
    engine = FrozenEngine(shape, records)
    apply = applied(engine, decode)
    variable, _ = problem(engine, decode, 4 * 3)
    stacked = variable.reshape(4, 3, *variable.shape[1:])
    mapped = torch.func.vmap(apply)(stacked)
    for got, want in zip(mapped, apply(variable)):
        assert torch.equal(got.flatten(0, 1), want)
    moved = torch.func.vmap(apply, in_dims=1, out_dims=1)(stacked.movedim(0, 1))
    assert all(torch.equal(a, b.movedim(0, 1)) for a, b in zip(moved, mapped))
    nested = torch.func.vmap(torch.func.vmap(apply))(stacked[None])
    assert all(torch.equal(a[0], b) for a, b in zip(nested, mapped))
    loss = lambda pair: (pair[0] ** 2).sum() + (pair[1] ** 2).sum()
    grads = []
    for call, given in ((torch.func.vmap(apply), stacked), (apply, variable)):
        leaf = given.clone().requires_grad_()
        grads.append(torch.autograd.grad(loss(call(leaf)), leaf)[0].reshape(variable.shape))
    assert torch.equal(*grads)


def test_a_vmapped_backward_pass():
    """Several cotangents of one result at once: what is saved has no dimension of its own."""
    shape, records = records_of("glow")
    engine = FrozenEngine(shape, records)
    x = torch.randn(2, *shape, requires_grad=True)
    z, _ = frozen_flow_encode(x, engine)
    cotangents = torch.randn(3, *z.shape)
    (many,) = torch.autograd.grad(z, x, cotangents, is_grads_batched=True, retain_graph=True)
    for got, cotangent in zip(many, cotangents):
        assert torch.equal(got, torch.autograd.grad(z, x, cotangent, retain_graph=True)[0])


@both_ways
def test_second_derivatives_raise(decode):
    """Even where no cotangent tells that one is wanted: beside another term it would be lost."""
    shape, records = records_of("glow")
    engine = FrozenEngine(shape, records)
    variable, _ = problem(engine, decode, 2)
    variable.requires_grad_()
    out, logdet = applied(engine, decode)(variable)
    (grad,) = torch.autograd.grad(out.sum() + logdet.sum(), variable, create_graph=True)
    with pytest.raises(NotImplementedError, match="backward has no gradient"):
        torch.autograd.grad((grad * variable).sum(), variable)


@both_ways
def test_forward_mode_derivatives_raise(decode):
    """Torch gives zeros for an op that has none."""
    shape, records = records_of("glow")
    engine = FrozenEngine(shape, records)
    variable, _ = problem(engine, decode, 2)
    map_ = applied(engine, decode)
    tangent = (torch.ones_like(variable),)
    for derivative in (
        lambda: torch.func.jvp(map_, (variable,), tangent),
        lambda: torch.func.jvp(torch.func.vmap(map_), (variable[None],), (tangent[0][None],)),
        lambda: torch.func.jacfwd(map_)(variable),
    ):
        with pytest.raises(NotImplementedError, match="no forward-mode"):
            derivative()
    with torch.autograd.forward_ad.dual_level():
        map_(variable)


@both_ways
def test_a_gradient_without_saved_signs_raises(decode):
    shape, records = records_of("glow")
    engine = FrozenEngine(shape, records)
    variable, _ = problem(engine, decode, 2)
    op = OPS.frozen_flow_decode if decode else OPS.frozen_flow_encode
    out, _, _ = op(variable.requires_grad_(), None, engine.handle)
    with pytest.raises(RuntimeError, match="kept nothing"):
        out.sum().backward()
    with torch.no_grad():
        out, logdet = applied(engine, decode)(variable)
    assert not out.requires_grad and not logdet.requires_grad


def test_an_engine_goes_with_its_last_user():
    shape, records = records_of("priors")
    engine = FrozenEngine(shape, records)
    x = torch.randn(2, *shape, requires_grad=True)
    want = torch.autograd.grad(frozen_flow_encode(x, engine)[0].sum(), x)[0]
    z = frozen_flow_encode(x, engine)[0]
    handle, alive = engine.handle, weakref.ref(engine)
    del engine
    gc.collect()
    assert alive() is not None  # the backward pass may still come
    assert torch.equal(torch.autograd.grad(z.sum(), x)[0], want)
    del z
    gc.collect()
    assert alive() is None
    assert_names("engine", lambda: OPS.frozen_flow_encode(x, None, handle))


# --- what is refused -----------------------------------------------------------------------------


def test_records_that_do_not_fit():
    ones = lambda *shape: torch.ones(shape)
    good = coupling(2, FIRST, 8, 1)
    vary = lambda **change: CouplingRecord(**{**vars(good), **change})
    for argument, record in (
        ("mean", StandardiseRecord(ones(2, 4), ones(2, 4, 3))),
        ("std", StandardiseRecord(ones(2, 4, 3), ones(1, 4, 3))),
        ("records", SqueezeRecord()),
        ("std", StandardiseRecord(ones(2, 4, 3), 0 * ones(2, 4, 3))),
        ("weight", MixingRecord(ones(3, 3), 0.0)),
        ("weight", MixingRecord(ones(2, 2), 0.0)),
        ("log_size_sum", MixingRecord(2 * torch.eye(2), 0.0)),
        ("mask", vary(mask="columns")),
        ("gain", vary(gain=ones(2))),
        ("convs", vary(convs=good.convs[:3])),
        ("convs", vary(convs=good.convs[:0])),
        ("convs", vary(convs=[*good.convs[:3], convolution(8, 3)])),
        ("convs", vary(convs=[convolution(2, 8), *good.convs[1:]])),
    ):
        assert_names(argument, lambda record=record: FrozenEngine((2, 4, 3), [record]))
    for record in (FactorOutRecord(), CouplingRecord(FIRST, ones(1), [])):
        assert_names("records", lambda record=record: FrozenEngine((3, 4, 4), [record]))
    assert_names("precision", lambda: FrozenEngine((1, 2, 2), [], "fp16"))
    assert_names("shape", lambda: FrozenEngine((2, 2), []))
    assert_names("shape", lambda: FrozenEngine((0, 2, 2), []))


def test_tensors_that_do_not_fit():
    engine = FrozenEngine((1, 4, 4), [SqueezeRecord()])
    assert_names("z", lambda: frozen_flow_decode(torch.zeros(2, 15), engine))
    assert_names("z", lambda: frozen_flow_decode(torch.zeros(2, 16).double(), engine))
    assert_names("x", lambda: frozen_flow_encode(torch.zeros(1, 4, 4), engine))
    assert_names("x", lambda: frozen_flow_encode(torch.zeros(1, 1, 4, 4).long(), engine))
    assert "1 x 4 x 4" in repr(engine)


def test_no_engine_without_the_kernels(monkeypatch):
    monkeypatch.setattr(backend, "choice", "torch")
    assert_names("device", lambda: FrozenEngine((1, 4, 4), []))
