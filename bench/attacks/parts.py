"""Direct calls of operations, noise models, operators and flows, with and without junk in them."""

from __future__ import annotations

import hashlib
import math
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import torch
from helpers import strided, tolerance
from hypothesis import strategies as st
from op_cases import CASES, Case
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast import ops
from flowinv_fast.operators.composition import noiseless

from . import problems as pr
from . import reference as ref
from .engine import Campaign, Refused, Report, Wrong, refused_clearly
from .solves import unchanged

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
JUNK = (None, -1, 10**30, 2.5, "x", math.nan, math.inf, [], (), 1 + 2j, object(), torch.float32)
_MASK = {code: name for name, code in ops.MASKS.items()}
_KIND = {code: name for name, code in ops.SIGMA_KINDS.items()}

# The public function of an operation, called with the operation's own arguments.
PUBLIC: dict[str, Callable[..., Any]] = {
    **{
        f"affine_coupling_{way}": lambda x, raw, gain, logdet, mask, way=way: getattr(
            ops, f"affine_coupling_{way}"
        )(x, raw, gain, logdet, _named(_MASK, mask))
        for way in ("encode", "decode")
    },
    "logit_encode": ops.logit_encode,
    "logit_decode": ops.logit_decode,
    "squeeze": ops.squeeze,
    "unsqueeze": ops.unsqueeze,
    "gaussian_log_prob": ops.gaussian_log_prob,
    "standard_normal_log_prob": ops.standard_normal_log_prob,
    "gather_patches": lambda x, places, h, w: ops.gather_patches(x, places, (h, w)),
    "scatter_patches": lambda p, places, c, h, w: ops.scatter_patches(p, places, (c, h, w)),
    "dequantise": ops.dequantise,
    "random_bits": lambda n, seed, offset, like: ops.random_bits(
        n, seed, offset, device=getattr(like, "device", like)
    ),
    "gaussian_noise": ops.gaussian_noise,
    "sigma_map": lambda level, c, h, w, kind, *rest: ops.sigma_map(
        level, (c, h, w), _named(_KIND, kind), *rest
    ),
    "structured_noise": lambda mean, level, c, h, w, kind, rate, low, high, seed, offset: (
        ops.structured_noise(
            mean, level, (c, h, w), _named(_KIND, kind), seed, offset, rate, low, high
        )
    ),
    "digit_overlay": lambda bank, b, k, c, h, w, seed, offset: ops.digit_overlay(
        bank, (b, c, h, w), k, seed, offset
    ),
    "quantise_ste": ops.quantise_ste,
}


# What the public function takes as a number too, by place; and what it keeps of the results.
_NUMBERS = {"gaussian_log_prob": (2, 3), "gaussian_noise": (0,)}
_KEPT = {"gaussian_log_prob": lambda results: results[0]}


def _named(names: dict[int, str], code: Any) -> Any:
    return names.get(code, code) if isinstance(code, int) else code


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in (value if isinstance(value, (tuple, list)) else [value]) if v is not None]


def _lifted(case: Case, arguments: list) -> list:
    """In float64, but where a tie broken by rounding would move a whole level."""
    lift = lambda a: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a
    return arguments if "quantise" in case.name else [*map(lift, arguments)]


def compare(found: Any, wanted: Any, dtype: torch.dtype, n: int) -> None:
    """Raise Wrong where values differ by more than rounding."""
    pairs = list(zip(_tensors(found), _tensors(wanted), strict=True))
    for got, want in pairs:
        if got.shape != want.shape or type(got) is not Tensor:
            raise Wrong(f"another shape: {tuple(got.shape)} for {tuple(want.shape)}")
        if got.device.type == "meta":
            continue  # shapes without numbers
        if not got.is_floating_point():
            if not torch.equal(got, want):
                raise Wrong("a silent difference: integers")
            continue
        scale = max(1.0, want.abs().nan_to_num(0, 0, 0).max().item()) if want.numel() else 1.0
        least = min((dtype, got.dtype), key=lambda t: -torch.finfo(t).eps)
        bounds = tolerance(least, n)
        off = (got.double() - want.double()).abs()
        most = 4 * (bounds["atol"] * scale + bounds["rtol"] * want.double().abs())
        agree = (off <= most) | (got.isnan() & want.isnan()) | (got.double() == want.double())
        if not bool(agree.all()):
            raise Wrong(f"a silent difference: {off.nan_to_num(9e9).max().item():g}")


def junked(draw: Callable, argument: Any) -> Any:
    """Something else in an argument's place."""
    if not isinstance(argument, Tensor):
        return draw(st.sampled_from([*JUNK, 0, torch.zeros(2)]))
    forms = {
        "int": lambda t: t.long(),
        "complex": lambda t: t.to(torch.complex64),
        "other": lambda t: t.double() if t.dtype == torch.float32 else t.float(),
        "meta": lambda t: t.to("meta"),
        "more": lambda t: t[None],
        "fewer": lambda t: t.flatten(),
        "short": lambda t: t[..., :-1],
        "numpy": lambda t: t.float().numpy(),
        "list": lambda t: t.tolist(),
        "sparse": lambda t: t.to_sparse(),
        "empty": lambda t: t[:0],
    }
    how = draw(st.sampled_from([*forms, "junk"]))
    return draw(st.sampled_from(JUNK)) if how == "junk" else forms[how](argument)


@st.composite
def operations(draw: Callable) -> tuple[str, Callable[[], None]]:
    """What a case is, and a function that makes the call and checks it."""
    case = draw(st.sampled_from(CASES))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31 - 1))
    torch.manual_seed(seed)
    random.seed(seed)
    arguments = list(case.draw(dtype, torch.device("cpu")))
    n = max([1, *(a.numel() for a in arguments if isinstance(a, Tensor))])
    if draw(st.booleans()):
        wanted = [isinstance(a, Tensor) and a.dim() > 1 for a in arguments]
        arguments = [strided(a) if w else a for a, w in zip(arguments, wanted)]
    public = PUBLIC.get(case.name)
    if public is None or draw(st.integers(0, 99)) < 40:
        call = lambda: compare(case.op(*arguments), case.twin(*_lifted(case, arguments)), dtype, n)
        return f"{case.name} {dtype} {seed}", call
    at = draw(st.integers(0, len(arguments) - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            arguments[at] = junked(draw, arguments[at])
        except (RuntimeError, TypeError, IndexError):
            pass
    call = lambda: _with_junk(case, public, arguments, dtype, n)
    return f"{case.name} {dtype} {seed}, argument {at}: {str(arguments[at])[:80]}", call


def _with_junk(case: Case, public: Callable, arguments: list, dtype: Any, n: int) -> None:
    try:
        found = public(*arguments)
    except TypeError as error:
        if "argument" not in str(error) and "not callable" not in str(error):
            raise
        raise Refused from error
    except Exception as error:
        if refused_clearly(error):
            raise Refused from error
        raise
    try:
        for place in _NUMBERS.get(case.name, ()):
            if not isinstance(arguments[place], Tensor):
                arguments[place] = torch.tensor(arguments[place], dtype=torch.float64)
        wanted = case.twin(*_lifted(case, arguments))
        wanted = _KEPT.get(case.name, lambda results: results)(wanted)
    except Exception as error:
        raise Wrong(f"taken in silence: {case.name}, {str(error)[:200]}") from error
    compare(found, wanted, dtype, n)


def _drawn(draw: Callable, empty: bool = False) -> pr.Draws:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    batch = draw(st.sampled_from([0, 1, 2, 5] if empty else [1, 2, 5]))
    dtype = draw(st.sampled_from(DTYPES[:2]))
    return pr.Draws(generator, batch, draw(st.sampled_from(pr.SHAPES)), dtype)


@st.composite
def noise_models(draw: Callable) -> tuple[str, Callable[[], None]]:
    """log p and its gradient, and draws that a generator fixes."""
    d, name = _drawn(draw), draw(st.sampled_from([*pr.NOISES]))
    shape = (d.batch, *d.shape) if draw(st.booleans()) else (d.batch, 7)
    part = pr.NOISES[name](d, shape)
    residual = 0.3 * d.normal(*shape)

    def call() -> None:
        given, lifted = (t.clone().requires_grad_() for t in (residual, residual.double()))
        found, wanted = part.value.log_prob(given), part.meaning(lifted)
        found = ref.sums(found) if found.dim() > 1 else found
        compare(found, wanted, d.dtype, 10_000)
        (grad,) = torch.autograd.grad(found.sum(), given)
        (want,) = torch.autograd.grad(wanted.sum(), lifted)
        compare(grad, want, d.dtype, 10_000)
        if isinstance(
            part.value, (ff.noise.Gaussian, ff.noise.FlowNoise, ff.noise.PlacedFlowNoise)
        ):
            one, two = (part.value.sample(shape, torch.Generator().manual_seed(3)) for _ in "ab")
            if not torch.equal(one, two) or tuple(one.shape) != shape:
                raise Wrong("draws that a generator does not fix: " + name)

    return f"noise {name} {shape} {d.dtype}", lambda: _kept(call, residual, part.value)


@st.composite
def operators(draw: Callable) -> tuple[str, Callable[[], None]]:
    """f(x), and for linear ones sum(f(x) y) = sum(x f^T(y)) and splitting of a batch."""
    d, name = _drawn(draw, empty=True), draw(st.sampled_from([*pr.OPERATORS]))
    part = pr.OPERATORS[name](d)
    x = d.uniform(d.batch, *d.shape)

    def call() -> None:
        operator = noiseless(part.value)
        found = operator(x)
        wanted = part.meaning(x.double())
        if part.label == "sign":
            return
        compare(found.detach(), wanted, d.dtype, 1000)
        if hasattr(operator, "adjoint"):
            y = d.normal(*found.shape)
            both = (found * y).double().sum(), (x * operator.adjoint(y)).double().sum()
            compare(both[0].detach(), both[1].detach(), d.dtype, 10_000)
        if hasattr(operator, "select") and d.batch > 1:
            shape = tuple(found.shape)
            rows = [operator.select(slice(i, i + 1), shape)(x[i : i + 1]) for i in range(d.batch)]
            compare(torch.cat(rows), found, d.dtype, 10)

    return f"operator {name} {d.shape} {d.dtype} B {d.batch}", lambda: _kept(call, x, part.value)


@st.composite
def flows(draw: Callable) -> tuple[str, Callable[[], None]]:
    """Both directions, densities and gradients, of a flow and of a frozen one."""
    d, frozen = _drawn(draw, empty=True), draw(st.booleans())
    support = draw(st.sampled_from(["unbounded", "bounded"]))
    dtype = torch.float32 if frozen else d.dtype
    flow = pr.flow_of(d.shape, dtype, support)
    model = flow.freeze() if frozen else flow
    x, z = (
        t.to(dtype) for t in (d.uniform(d.batch, *d.shape), d.normal(d.batch, math.prod(d.shape)))
    )
    if draw(st.booleans()):
        x, z = strided(x), strided(z)

    def call() -> None:
        meaning = ref.RealNVP(flow)
        for name, point in (("encode", x), ("decode", z), ("log_prob", x)):
            given, lifted = (t.clone().requires_grad_() for t in (point, point.double()))
            found = getattr(model, name)(given)
            if not d.batch:  # of which torch's own layouts make other shapes
                shapes = [tuple(t.shape) for t in _tensors(found)]
                wanted_shapes = {"encode": [z.shape, (0,)], "decode": [x.shape, (0,)]}
                if shapes != [*map(tuple, wanted_shapes.get(name, [(0,)]))]:
                    raise Wrong(f"another shape: {name} of no images {shapes}")
                continue
            wanted = getattr(meaning, name)(lifted)
            compare(_detached(found), _detached(wanted), dtype, 100_000)
            total = sum(t.sum() for t in _tensors(found))
            (grad,) = torch.autograd.grad(total, given)
            (want,) = torch.autograd.grad(sum(t.sum() for t in _tensors(wanted)), lifted)
            compare(grad, want, dtype, 1_000_000)

    label = f"{'frozen ' if frozen else ''}flow {support} {d.shape} {dtype} B {d.batch}"
    return label, lambda: _kept(call, x, z, flow)


def _detached(value: Any) -> list[Tensor]:
    return [t.detach() for t in _tensors(value)]


@st.composite
def measures(draw: Callable) -> tuple[str, Callable[[], None]]:
    """PSNR against its formula, and two sources that add up to their mixture."""
    d = _drawn(draw)
    x, truth = 1.5 * d.normal(d.batch, *d.shape), d.uniform(d.batch, *d.shape)

    def call() -> None:
        error = (x.double().clamp(0, 1) - truth.double()).square().flatten(1).mean(1)
        compare(ff.metrics.psnr(x, truth), -10 * error.log10(), d.dtype, 1000)
        flow = pr.flow_of(d.shape, d.dtype)
        found = ff.separate(truth, (flow, flow), (0.7, -1.2), steps=2, progress=False)
        first, second = found.x1, found.x2
        compare(0.7 * first - 1.2 * second, truth.double(), d.dtype, 100_000)

    return f"measures {d.shape} {d.dtype} B {d.batch}", lambda: _kept(call, x, truth)


def _kept(call: Callable[[], None], *parts: Any) -> None:
    """The call, which changes nothing of these."""
    with unchanged(*parts):
        call()


def run(report: Report, seed: int, size: int, work: Path) -> None:
    """A batch of calls."""
    warnings.simplefilter("ignore")
    many = [operations(), operations(), operations(), noise_models(), operators(), flows()]

    @hypothesis.settings(
        database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(st.one_of(*many, measures()))
    def attack(case: tuple[str, Callable[[], None]]) -> None:
        with report.case(lambda: case[0]):
            case[1]()

    for number in range(size):
        bits = hashlib.shake_128(struct.pack("<2I", seed, number)).digest(4096)
        attack.hypothesis.fuzz_one_input(bits)


CAMPAIGNS = [
    Campaign("parts", "operations, noise models, operators, flows", 4_000, 16, 60.0, run, 500)
]
