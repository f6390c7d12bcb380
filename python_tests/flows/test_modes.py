"""Flows in every mode that torch and Python have: they work, or say in one sentence why not."""

from __future__ import annotations

import contextlib
import copy
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from functools import partial

import pytest
import torch
from helpers import assert_names, randomise
from torch import nn

import flowinv_fast as ff
from flowinv_fast.flows import AffineCoupling, Flow, FlowConfig

SHAPE = (1, 8, 8)


def toy(support: str = "unbounded", make=ff.realnvp, kind=ff.RealNVPConfig) -> Flow:
    return randomise(make(kind(SHAPE, scales=2, hidden=4, blocks=1, support=support))).eval()


def images(batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, *SHAPE)


def refolded(flow: Flow, x: torch.Tensor) -> torch.Tensor:
    """log p of a flow that has no history: only its numbers are taken over."""
    new = ff.realnvp(flow.config)
    for own, other in zip(
        itertools.chain(new.parameters(), new.buffers()),
        itertools.chain(flow.parameters(), flow.buffers()),
    ):
        own.data = other.detach().clone()
    return new.requires_grad_(False).log_prob(x)


def _foreach(flow: Flow) -> None:
    torch._foreach_mul_([p.data for p in flow.parameters()], 1.1)


def _optimise(flow: Flow) -> None:
    for p in flow.parameters():
        p.grad = torch.randn_like(p)
    torch.optim.Adam(flow.parameters(), lr=0.05, fused=True).step()


def _assign(flow: Flow) -> None:
    for p in flow.parameters():
        p.data = p.data * 1.1


def _copy(flow: Flow) -> None:
    for p in flow.parameters():
        p.data.copy_(1.1 * p.data)


def _load(flow: Flow) -> None:
    flow.load_state_dict({k: 1.1 * v for k, v in flow.state_dict().items()})


@pytest.mark.parametrize("edit", [_foreach, _optimise, _assign, _copy, _load])
def test_no_edit_of_a_weight_leaves_a_stale_one(edit):
    flow, x = toy().requires_grad_(False), images()
    before = flow.log_prob(x)
    edit(flow)
    want = refolded(flow, x)
    assert (want - before).abs().max() > 1e-3
    for got in (flow.log_prob(x), copy.deepcopy(flow).log_prob(x), flow.freeze().log_prob(x)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_the_support_of_a_bounded_flow():
    """Inside, ends included, a density; outside -infinity; gradients finite everywhere."""
    flow = toy("bounded")
    past = flow.config.alpha / (1 - 2 * flow.config.alpha)
    x = images(7)
    x[0], x[1] = 0.0, 1.0
    x[2, 0, 3, 4], x[3, 0, 0, 0] = 1 + 0.9 * past, -0.9 * past
    x[4, 0, 1, 2], x[5, 0, 2, 2], x[6, 0, 0, 5] = 1 + 1.1 * past, -7.0, torch.inf
    for dtype, kind in itertools.product((torch.float32, torch.float64), ("flow", "frozen")):
        if kind == "frozen" and dtype == torch.float64:
            continue
        own = flow.freeze() if kind == "frozen" else copy.deepcopy(flow).to(dtype)
        variable = x.to(dtype).requires_grad_()
        log_prob = own.log_prob(variable)
        assert torch.isfinite(log_prob[:4]).all() and (log_prob[4:] == -torch.inf).all()
        z, logdet = own.encode(variable)
        assert torch.isfinite(z).all() and (logdet[4:] == -torch.inf).all()
        for scalar in (log_prob.sum(), z.sum() + logdet.sum()):
            (grad,) = torch.autograd.grad(scalar, variable, retain_graph=True)
            assert torch.isfinite(grad).all()
        assert grad[6, 0, 0, 5] == 0 and grad[0].abs().min() > 0
    assert flow.log_prob(torch.full((1, *SHAPE), torch.nan)).isnan().all()


def test_a_solve_outside_the_support_stays_inside():
    """Steps are those of logits, so that a start outside is one at the edge."""
    flow, y = toy("bounded"), 0.3 + 0.4 * images(2)
    y[0, 0, 3, 3] = 3.0
    found = ff.reconstruct(
        y,
        ff.operators.Identity(),
        flow,
        ff.noise.Gaussian(0.1),
        objective="map-image",
        start=y,
        steps=4,
        lr=1e-3,
        throw=False,
        progress=False,
    )
    assert set(found.status) <= {ff.Status.MAX_STEPS, ff.Status.UNSETTLED}  # after four steps
    assert flow.log_prob(y)[0] == -torch.inf and found.x[0, 0, 3, 3] > 0.99
    assert ((found.x >= 0) & (found.x <= 1)).all() and found.loss.isfinite().all()


@pytest.mark.parametrize("make", [toy, lambda: toy("bounded").freeze(), lambda: toy().freeze()])
def test_pickles_and_copies(make):
    flow, x = make(), images()
    want = flow.log_prob(x)  # used before
    for other in (pickle.loads(pickle.dumps(flow)), copy.deepcopy(flow)):
        assert torch.equal(other.log_prob(x), want)
        assert other.shape == flow.shape and repr(other) == repr(flow)


def test_a_pickle_holds_the_weights_as_they_were():
    flow, x = toy(), images()
    frozen = flow.freeze()
    want = frozen.log_prob(x)
    for p in flow.parameters():
        p.data.mul_(1.5)
    assert torch.equal(pickle.loads(pickle.dumps(frozen)).log_prob(x), want)


def _child_values(flow, x):
    x = x.clone().requires_grad_()
    log_prob = flow.log_prob(x)
    return log_prob.detach().tolist(), torch.autograd.grad(log_prob.sum(), x)[0].tolist()


def test_a_spawned_process_takes_a_frozen_flow():
    """Of functions that the child can import: it has no path to the tests."""
    flow, x = toy().freeze(), images()
    calls = [flow.log_prob, partial(torch.autograd.functional.jacobian, flow.log_prob)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for call in calls:  # a child that dies answers nothing
            assert torch.equal(pool.apply_async(call, (x,)).get(timeout=300), call(x))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_computes_after_threads_were_used():
    """Our threads and torch's are gone in the child; nothing waits for them."""
    flow = toy()
    frozen, x, before = flow.freeze(), images(8), torch.get_num_threads()
    large = torch.rand(1000, 1000)
    torch.set_num_threads(2)
    try:
        stop, callers = threading.Event(), []

        def busy():
            with torch.no_grad():
                while not stop.is_set():
                    frozen.encode(x)

        large * 2, large @ large  # torch's own threads are there now
        want = frozen.log_prob(x), _child_values(frozen, x)
        callers = [threading.Thread(target=busy) for _ in range(2)]
        for caller in callers:
            caller.start()
        codes = [_forked(frozen, flow, x, large, want) for _ in range(3)]
        stop.set()
        for caller in callers:
            caller.join()
        assert codes == [0, 0, 0]
    finally:
        torch.set_num_threads(before)


def _forked(frozen, flow, x, large, want) -> int:
    child = os.fork()
    if child == 0:
        same = torch.equal(frozen.log_prob(x), want[0]) and _child_values(frozen, x) == want[1]
        flow.log_prob(x), large * 2
        os._exit(0 if same else 3)
    for _ in range(100):
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            return code
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def test_inference_mode():
    flow = ff.load_flow("digits-noise-28")
    with torch.inference_mode():
        loaded = ff.load_flow("digits-noise-28")
        x = torch.rand(2, 1, 28, 28)
        inside = loaded.log_prob(x), loaded.freeze().log_prob(x)
    variable = x.clone().requires_grad_()
    want = flow.log_prob(variable)
    for got in (*inside, loaded.log_prob(x)):
        torch.testing.assert_close(got, want)
    (grad,) = torch.autograd.grad(loaded.log_prob(variable).sum(), variable)
    assert torch.isfinite(grad).all()
    made = toy().state_dict()
    with torch.inference_mode():
        copied = pickle.loads(pickle.dumps(toy()))  # its parameters belong to this mode
        copied.load_state_dict(made)
        copied.log_prob(x[:, :, :8, :8])


def test_a_solve_inside_inference_mode():
    flow, y = toy(), images(2)
    solve = lambda y: ff.reconstruct(
        y, ff.operators.Identity(), flow, ff.noise.Gaussian(0.1), steps=3, progress=False
    )
    want = solve(y).x
    with torch.inference_mode():
        inside = solve(y), solve(y.clone())
    assert all(torch.equal(found.x, want) and not found.x.is_inference() for found in inside)


def test_default_dtype_and_device():
    before, x = torch.get_default_dtype(), images(2)
    flow = toy()
    frozen = flow.freeze()
    want = frozen.log_prob(x)
    try:
        torch.set_default_dtype(torch.float64)
        assert frozen.sample(2).dtype == flow.sample(2).dtype == torch.float32
        assert torch.equal(frozen.log_prob(x), want)
        assert ff.load_flow("digits-noise-28").freeze().sample(1).dtype == torch.float32
        assert ff.generators.load_generator("fashion-vae-28").dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        loaded = ff.load_flow("digits-noise-28")
        assert flow.freeze().sample(2).device.type == loaded.device.type == "cpu"
        assert torch.equal(flow.freeze().log_prob(x), want)
        assert ff.generators.load_generator("fashion-vae-28").device.type == "cpu"
    assert_names("device", lambda: flow.freeze(device="meta"))
    assert_names("device", lambda: copy.deepcopy(flow).to("meta").freeze())


def test_autocast_leaves_a_frozen_flow_alone():
    flow, x = toy(), images()
    frozen = flow.freeze()
    want, exact = frozen.log_prob(x), flow.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frozen.log_prob(x), want)
        assert flow.log_prob(x).dtype == torch.float32
        (grad,) = torch.autograd.grad(flow.log_prob(x).sum(), flow.layers[1].gain)
    assert torch.isfinite(grad).all() and torch.equal(flow.log_prob(x), exact)


@pytest.mark.parametrize("make", [toy, lambda: toy("bounded").freeze()])
def test_transforms_of_torch_func(make):
    flow, x = make(), images(2)
    total = lambda x: flow.log_prob(x).sum()
    want = torch.autograd.grad(total(v := x.clone().requires_grad_()), v)[0]
    torch.testing.assert_close(torch.func.grad(total)(x), want)
    each = torch.func.vmap(torch.func.grad(lambda x: flow.log_prob(x[None])[0]))
    torch.testing.assert_close(each(x), want, rtol=1e-4, atol=1e-4)
    small = torch.func.jacrev(lambda x: flow.log_prob(x))(x)
    torch.testing.assert_close(small.sum(0), want)
    many = torch.func.vmap(lambda x: flow.log_prob(x[None])[0])
    with torch.no_grad():
        torch.testing.assert_close(many(x), flow.log_prob(x))
    for forward in (torch.func.jacfwd(total), torch.func.hessian(total)):
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            forward(x)


def test_second_derivatives_by_torch_func():
    flow = copy.deepcopy(toy()).double()
    x, v = images(1).double(), torch.randn(1, *SHAPE).double()
    total = lambda x: flow.log_prob(x).sum()
    want = torch.autograd.functional.hvp(total, x, v)[1]
    got = torch.func.grad(lambda x: (torch.func.grad(total)(x) * v).sum())(x)
    torch.testing.assert_close(got, want)
    with pytest.raises(NotImplementedError, match="frozen_flow_encode_backward has no gradient"):
        frozen = toy().freeze()
        first = torch.func.grad(lambda x: frozen.log_prob(x).sum())
        torch.func.grad(lambda x: first(x).sum())(x.float())


def test_threads_share_a_flow():
    flow, x = toy(), images(2)
    frozen, results = flow.freeze(), {}
    want = _child_values(flow, x), _child_values(frozen, x)

    def work(i):
        results[i] = [(_child_values(flow, x), _child_values(frozen, x)) == want for _ in range(3)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 8 and all(all(same) for same in results.values())


class Tagged(torch.Tensor):
    """A user's subclass that changes nothing."""


def test_results_do_not_inherit_a_users_subclass():
    flow, x = toy(), images()
    z = torch.randn(3, 64)
    for own in (flow, flow.freeze(), toy("bounded")):
        tagged = [*own.encode(x.as_subclass(Tagged)), *own.decode(z.as_subclass(Tagged))]
        tagged.append(own.log_prob(x.as_subclass(Tagged)))
        plain = [*own.encode(x), *own.decode(z), own.log_prob(x)]
        assert all(type(t) is torch.Tensor for t in tagged)
        assert all(torch.equal(a, b) for a, b in zip(tagged, plain))
    assert type(flow.log_prob(nn.Parameter(x))) is torch.Tensor


def test_weights_that_are_no_numbers_are_not_frozen():
    for value, name in itertools.product((torch.nan, torch.inf), ("layers.1.gain", "layers.0.std")):
        flow = toy()
        with torch.no_grad():
            dict(itertools.chain(flow.named_parameters(), flow.named_buffers()))[name][0] = value
        assert name in assert_names("flow", flow.freeze)


class Stochastic(nn.Module):
    """A conditioner with a part that is not a function of its input in training."""

    outputs = 2

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part, self.last = part, nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.last(self.part(x))


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm2d(1), nn.Dropout2d(0.5)])
def test_recomputing_refuses_what_is_no_function_of_its_input(part):
    masks = ("checkerboard_even", "checkerboard_odd")
    couplings = [AffineCoupling(1, mask=m, conditioner=Stochastic(part)) for m in masks]
    flow, x = Flow(couplings, FlowConfig(SHAPE)), images()
    flow.log_prob(x).sum().backward()
    flow.recompute = True
    assert "eval()" in assert_names("recompute", lambda: flow.log_prob(x))
    flow.eval().log_prob(x).sum().backward()
    with contextlib.suppress(AttributeError):
        assert torch.isfinite(part.running_mean).all()
