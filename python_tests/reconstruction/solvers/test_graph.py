"""A solver step asks nothing of the host, so a CUDA graph can hold it; and the graph itself."""

from __future__ import annotations

import contextlib
import functools
import types

import pytest
import torch
from flows.test_frozen import random_flow
from torch.utils._python_dispatch import TorchDispatchMode

import flowinv_fast as ff
from flowinv_fast import noise, operators
from flowinv_fast.reconstruction import objectives
from flowinv_fast.reconstruction.solvers import graph as _graph
from flowinv_fast.reconstruction.solvers.adam import AdamState

SHAPE = (1, 8, 8)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class NothingFromTheHost(TorchDispatchMode):
    """Refuses what a capture cannot hold: reading a value, or bringing Python data to a tensor."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "item", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{function} in a step"
        return function(*args, **(kwargs or {}))


OPERATORS = {
    "identity": lambda: operators.Identity(),
    "scale": lambda: operators.Scale(0.5),
    "inpaint": lambda: operators.Inpaint(torch.randint(2, SHAPE).float()),
    "blur": lambda: operators.Blur(torch.ones(3, 3) / 9),
    "sensing": lambda: operators.GaussianSensing(12, SHAPE),
    "sign": lambda: operators.SignSensing(12, SHAPE),
}
LAWS = {
    "gaussian": lambda: noise.Gaussian(0.3, 0.1),
    "maps": lambda: noise.Gaussian(0.2 + torch.rand(SHAPE), torch.randn(3, 1, 1, 1)),
    "sinusoidal": lambda: noise.Sinusoidal(0.2),
    "radial": lambda: noise.Radial(0.5),
    "flow": lambda: noise.FlowNoise(random_flow(SHAPE, 0.3, hidden=8, scales=1, blocks=1).freeze()),
}
CASES = [("identity", law) for law in LAWS] + [(operator, "gaussian") for operator in OPERATORS]


def state_of(operator, law, space="latent", device="cpu", **options) -> AdamState:
    prior = random_flow(SHAPE, 0.3, hidden=8, scales=2, blocks=1).freeze(device=device)
    operator = operator.to(device)
    y = operator(torch.rand(3, *SHAPE, device=device)).detach()
    start = torch.randn(3, 64, device=device)
    start = start if space == "latent" else start.view(3, *SHAPE)
    evaluate = functools.partial(ff.MAP(1.0, space).evaluate, y, operator, prior, law)
    settings = {"steps": 40, "lr": 0.1, "schedule": "cosine", "tol": 1e-3, "patience": 5}
    return AdamState(evaluate, start, **{**settings, **options}, active=None)


@pytest.mark.parametrize("space", ["latent", "image"])
@pytest.mark.parametrize("operator,law", CASES)
def test_a_step_asks_nothing_of_the_host(operator, law, space):
    state = state_of(OPERATORS[operator](), LAWS[law](), space)
    state.advance()  # what is kept from now on
    before = state.x.clone()
    addresses = [t.data_ptr() for t in state.tensors()]
    with NothingFromTheHost():
        state.advance()
    assert not torch.equal(state.x, before)
    assert addresses == [t.data_ptr() for t in state.tensors()]


def test_the_guard_finds_a_read():
    for guilty in (lambda t: t.sum().item(), lambda t: t * torch.tensor([2.0]), torch.nonzero):
        with pytest.raises(AssertionError), NothingFromTheHost():
            guilty(torch.ones(3))


def test_patience_is_counted_on_the_device():
    """An image stops once ``patience`` steps gained no more than tol (1 + |best|)."""
    losses = torch.tensor([5.0, 4.0, 3.0, 2.999, 2.998, 2.997, 2.996, 1.0, 0.5])
    calls = iter(losses)

    def evaluate(x):
        loss = next(calls) + 0 * x.sum(1)
        return objectives.Terms(loss, loss, loss)

    state = AdamState(evaluate, torch.zeros(1, 2), 9, 0.1, "constant", 1e-2, 3, None)
    active = []
    for _ in range(7):
        state.advance()
        active.append(bool(state.active))
    # After step 5 (0-based) the best of step 2, 3.0, has come down by 0.003 only.
    assert active == [True] * 5 + [False] * 2
    assert int(state.taken) == 6


class FakeCuda:
    """torch.cuda as ``capture`` uses it. As in torch, a capture that is broken raises where it
    should end, and leaves its stream the current one."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self):
        self.device_now, self.captured = None, {}
        self.stream_now = self.default = self.Stream()
        self.synchronize = lambda: None
        self.current_stream = lambda: self.stream_now
        self.CUDAGraph = lambda: types.SimpleNamespace(replay="replay")

    def Stream(self):
        return types.SimpleNamespace(device=self.device_now, wait_stream=lambda other: None)

    def set_stream(self, stream):
        self.stream_now = stream

    @contextlib.contextmanager
    def device(self, device):
        self.device_now = device
        yield
        self.device_now = None

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert _graph._one_at_a_time.locked()
        self.captured = {"stream": stream, "mode": capture_error_mode}
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        except BaseException:
            raise RuntimeError("capture invalidated") from None
        self.stream_now = before


@pytest.fixture
def fake_cuda(monkeypatch):
    cuda = FakeCuda()
    fake = types.SimpleNamespace(cuda=cuda, no_grad=torch.no_grad)
    monkeypatch.setattr(_graph, "torch", fake)
    return cuda


def test_capture_stays_on_the_tensors_device_and_to_itself(fake_cuda):
    value, seen = torch.zeros(2), []

    def step():
        value.add_(1)
        seen.append((fake_cuda.device_now, fake_cuda.stream_now))

    assert _graph.capture(step, [value]) == "replay"
    assert {device for device, _ in seen} == {value.device}
    assert {id(stream) for _, stream in seen} == {id(fake_cuda.captured["stream"])}
    assert fake_cuda.captured["stream"].device == value.device
    assert fake_cuda.captured["mode"] == "thread_local"
    assert fake_cuda.stream_now is fake_cuda.default and torch.equal(value, torch.zeros(2))


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, torch.cuda.OutOfMemoryError])
def test_a_broken_capture_tells_why_and_leaves_the_stream(kind, fake_cuda):
    value, calls = torch.zeros(2), []

    def step():
        value.add_(1)
        calls.append(0)
        if len(calls) > 3:  # after the trial runs
            raise kind("mine\nand more")

    if kind is torch.cuda.OutOfMemoryError:  # for reconstruct, which halves the batch
        with pytest.raises(kind, match="mine"):
            _graph.capture(step, [value])
    else:
        with pytest.warns(UserWarning, match="no CUDA graph, slower: mine$"):
            assert _graph.capture(step, [value]) is step
    assert fake_cuda.stream_now is fake_cuda.default and torch.equal(value, torch.zeros(2))
    assert not _graph._one_at_a_time.locked()


@needs_cuda
@pytest.mark.parametrize("operator,law", CASES)
def test_a_captured_solve_equals_the_plain_one(operator, law, recwarn):
    law = LAWS[law]()
    if isinstance(law, noise.FlowNoise):
        law.flow = random_flow(SHAPE, 0.3, hidden=8, scales=1, blocks=1).freeze(device="cuda")
    torch.manual_seed(0)
    plain = state_of(OPERATORS[operator](), law, device="cuda")
    torch.manual_seed(0)
    other = state_of(OPERATORS[operator](), law, device="cuda")
    replay = _graph.capture(other.advance, other.tensors())
    assert not recwarn.list
    for _ in range(20):
        plain.advance()
        replay()
    for a, b in zip(plain.tensors(), other.tensors()):
        torch.testing.assert_close(a, b)


@needs_cuda
def test_an_operator_that_reads_back_is_solved_without_a_graph():
    prior = random_flow(SHAPE, 0.3, hidden=8, scales=2, blocks=1).cuda()
    reading = lambda x: x * float(x.detach().abs().max() > 0)
    with pytest.warns(UserWarning, match="no CUDA graph"):
        got = ff.reconstruct(
            torch.rand(2, *SHAPE).cuda(),
            reading,
            prior,
            noise.Gaussian(0.3),
            steps=40,
            progress=False,
        )
    assert torch.isfinite(got.loss).all()
