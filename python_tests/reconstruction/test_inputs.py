"""Arguments that cannot be used: the message names them and says what to do."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_names
from torch import nn
from toy_flows import SHAPE, SIZE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import noise, operators

Y = torch.zeros(3, *SHAPE)
X = torch.zeros(2, *SHAPE)
ONE, LAW = Y[0], noise.Gaussian(0.5)


def affine():
    return AffineFlow(torch.zeros(SHAPE), torch.ones(SHAPE))


class Generator:
    latent_dim = 3

    def __call__(self, z):
        return z.sum(1).view(-1, 1, 1, 1).expand(-1, *SHAPE)


def solve(**change):
    call = {
        "y": Y,
        "operator": operators.Identity(),
        "prior": affine(),
        "noise": LAW,
        "steps": 1,
        "progress": False,
        **change,
    }
    return ff.reconstruct(**call)


def sample(**change):
    call = {
        "y": Y,
        "operator": operators.Identity(),
        "prior": affine(),
        "noise": LAW,
        "samples": 4,
        "chains": 2,
        "warm_up": 1,
        **change,
    }
    return ff.sample_posterior(**call)


def measure(**change):
    return ff.measure(**{"x": X, "operator": operators.Identity(), "noise": LAW, **change})


def bound(**change):
    return ff.recovery_bound(**{"prior": affine(), "x": X, "delta_norm": 1.0, "std": 0.1, **change})


def separate(**change):
    return ff.separate(**{"y": Y, "sources": (affine(), affine()), "steps": 1, **change})


# The call, the argument, what is given, and what the message has to say.
TOLD = {
    "y-uint8": (solve, "y", Y.byte(), "give y.float() / 255"),
    "y-integers": (solve, "y", Y.int(), "give y.float()"),
    "y-bool": (solve, "y", Y.bool(), "give y.float()"),
    "y-half": (solve, "y", Y.half(), "give y.float()"),
    "y-bfloat16": (solve, "y", Y.bfloat16(), "give y.float()"),
    "y-complex": (solve, "y", Y.cfloat(), "torch.view_as_real(y)"),
    "y-sparse": (solve, "y", Y.to_sparse(), "y.to_dense()"),
    "y-numpy": (solve, "y", Y.numpy(), "torch.from_numpy(y)"),
    "y-list": (solve, "y", Y.tolist(), "torch.tensor(y)"),
    "y-none": (solve, "y", None, "got None"),
    "y-vector": (solve, "y", Y[0, 0, 0], "y[None]"),
    "y-unbatched": (solve, "y", ONE, "y[None]"),
    "sampled-y-uint8": (sample, "y", Y.byte(), "give y.float() / 255"),
    "sampled-y-unbatched": (sample, "y", ONE, "y[None]"),
    "separated-y-complex": (separate, "y", Y.cfloat(), "torch.view_as_real(y)"),
    "separated-y-numpy": (separate, "y", Y.numpy(), "torch.from_numpy(y)"),
    "sources-names": (separate, "sources", ("a", "b"), "load_flow('a')"),
    "sources-name": (separate, "sources", "a", "two flows"),
    "x-uint8": (measure, "x", X.byte(), "give x.float() / 255"),
    "x-unbatched": (measure, "x", X[0], "x[None]"),
    "x-picture": (measure, "x", X[0, 0], "x[None, None]"),
    "x-numpy": (measure, "x", X.numpy(), "torch.from_numpy(x)"),
    "bound-x-uint8": (bound, "x", X.byte(), "give x.float() / 255"),
    "bound-x-unbatched": (bound, "x", X[0], "x[None]"),
    "bound-x-half": (bound, "x", X.half(), "give x.float()"),
    "operator-class": (solve, "operator", operators.Identity, "as Identity(...)"),
    "measure-class": (measure, "operator", operators.Identity, "as Identity(...)"),
    "operator-matrix": (solve, "operator", torch.ones(3, 3), "shape (3, 3)"),
    "prior-name": (solve, "prior", "fashion-28", "load_flow('fashion-28')"),
    "prior-path": (solve, "prior", Path("a.safetensors"), "load_flow('a.safetensors')"),
    "sampled-prior-name": (sample, "prior", "fashion-28", "load_flow('fashion-28')"),
    "bound-prior-name": (bound, "prior", "fashion-28", "load_flow('fashion-28')"),
    "prior-class": (solve, "prior", AffineFlow, "as AffineFlow(...)"),
    "bound-prior-class": (bound, "prior", AffineFlow, "as AffineFlow(...)"),
    "prior-generator": (solve, "prior", Generator(), "'csgm'"),
    "noise-class": (solve, "noise", noise.Gaussian, "as Gaussian(...)"),
    "drawn-class": (measure, "noise", noise.Gaussian, "as Gaussian(...)"),
    "sampled-noise-class": (sample, "noise", noise.Gaussian, "as Gaussian(...)"),
    "noise-number": (solve, "noise", 0.1, "noise.Gaussian(std)"),
    "noise-none": (solve, "noise", None, "noise.Gaussian(std)"),
    "noise-tensor": (solve, "noise", torch.ones(()), "noise.Gaussian(std)"),
    "noise-name": (solve, "noise", "digits-noise-28", "FlowNoise"),
    "objective-class": (solve, "objective", ff.MAP, "as MAP(...)"),
    "objective-near": (solve, "objective", "map-images", "did you mean map-image?"),
    "strategy-class": (solve, "strategy", ff.Strategy, "as Strategy(...)"),
    "strategy-near": (solve, "strategy", "aneal", "did you mean annealed?"),
    "start-numpy": (solve, "start", np.zeros((3, SIZE), np.float32), "torch.from_numpy(start)"),
    "sampled-start-numpy": (sample, "start", np.zeros((3, 16), np.float32), "torch.from_numpy("),
    "start-half": (solve, "start", torch.zeros(3, SIZE).half(), "give start.float()"),
    "callback": (solve, "callback", 3, "a callable"),
    "steps-true": (solve, "steps", True, "an integer of at least 1"),
    "lr-true": (solve, "lr", True, "a positive number"),
    "beta": (solve, "beta", 0.5, "objective=MAP(beta=...)"),
    "gamma": (solve, "gamma", 0.5, "AsimLikelihood(gamma=...) or AsimProxy(gamma=...)"),
    "lam": (solve, "lam", 0.5, "objective=CSGM(lam=...)"),
    "space": (solve, "space", "image", "objective=MAP(space=...)"),
    "tol": (solve, "tol", 1e-3, "strategy=Strategy((Stage(tol=...),))"),
    "polish": (solve, "polish", 0.1, "strategy=Strategy(polish=...)"),
    "step": (solve, "step", 3, "did you mean steps?"),
    "separated-beta": (separate, "beta", 0.5, "objective=MAP(beta=...)"),
    "sampled-beta": (sample, "beta", 0.5, "objective=MAP(beta=...)"),
    "sampled-near": (sample, "warmup", 3, "did you mean warm_up?"),
    "measure-near": (measure, "generators", None, "did you mean generator?"),
    "bound-unknown": (bound, "qqq", 3, "one of ['prior', 'x'"),
}


@pytest.mark.parametrize("case", TOLD)
def test_the_message_says_what_to_do(case):
    call, argument, given, told = TOLD[case]
    message = assert_names(argument, lambda: call(**{argument: given}))
    assert told in message
    assert message.count("\n") == 0


def test_measurements_of_another_number_of_images():
    """A mask of four images and three measurements."""
    mask = operators.Inpaint(torch.ones(4, *SHAPE))
    for y in (Y, Y[:1]):
        told = assert_names("mask", lambda y=y: solve(operator=mask, y=y))
        assert f"broadcasts to ({len(y)}, " in told


def test_measurements_that_carry_a_gradient_are_solved_and_keep_it():
    y = Y.clone().requires_grad_()
    got = solve(y=y)
    assert not got.x.requires_grad and not got.noise.requires_grad and y.grad is None


def test_numbers_of_numpy():
    plain = solve(y=Y + 1, steps=7, lr=0.05, restarts=2, seed=5)
    got = solve(
        y=Y + 1, steps=np.int64(7), lr=np.float32(0.05), restarts=np.uint8(2), seed=np.int32(5)
    )
    torch.testing.assert_close(got.x, plain.x)
    numbers = [got.config[name] for name in ("steps", "restarts", "seed", "lr")]
    assert [type(n) for n in numbers] == [int, int, int, float]
    assert ff.Stage(share=np.float64(0.5), patience=np.int64(3)).patience == 3
    drawn = [sample(samples=n(4), seed=n(3)).x for n in (int, np.int64)]
    assert torch.equal(*drawn)
    torch.testing.assert_close(bound(std=np.float32(0.5)).bound, bound(std=0.5).bound)


def test_a_draw_of_another_shape_is_refused():
    law = type("Law", (), {"sample": lambda self, shape, generator: torch.zeros(shape[1:])})()
    assert "shape (2, 1, 4, 4)" in assert_names("noise", lambda: measure(noise=law))


def test_a_guess_of_another_shape_is_refused():
    class Odd(operators.Identity):
        def guess(self, y):
            return y[..., :2]

    assert_names("operator", lambda: solve(operator=Odd()))


MODES = {
    "no-grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_torch_end_at_the_entrance(mode):
    """The same bits as outside, whatever the caller is in."""
    net, flow = nn.Conv2d(1, 1, 3, padding=1), affine()
    y, operator = torch.randn_like(Y), operators.Scale(2.0) @ net
    calls = [
        lambda y: solve(y=y, operator=operator, prior=flow, noise=LAW, steps=3).x,
        lambda y: sample(y=y, operator=operator, prior=flow, noise=LAW).x,
        lambda y: measure(x=y, operator=operator, noise=LAW, generator=fixed()),
        lambda y: bound(x=y, prior=flow).bound,
    ]
    fixed = lambda: torch.Generator("cpu").manual_seed(0)
    want = [call(y) for call in calls]
    with MODES[mode]():
        got = [call(1.0 * y) for call in calls]
    assert all(torch.equal(a, b) and not a.is_inference() for a, b in zip(got, want))


class Tagged(torch.Tensor):
    """A user's subclass that changes nothing."""


def test_results_do_not_inherit_a_users_subclass():
    """Whatever makes the start, over latents and images, with every solver."""
    y, flow = torch.rand(2, *SHAPE), affine()
    given = y.as_subclass(Tagged)
    for goal, strategy in (("asim-likelihood", "tempered"), ("map-image", "lbfgs"), ("map", None)):
        options = {"prior": flow, "steps": 2, "objective": goal, "strategy": strategy}
        found, want = solve(y=given, **options), solve(y=y, **options)
        tensors = (found.x, found.loss, found.noise, *([] if found.z is None else [found.z]))
        assert all(type(t) is torch.Tensor for t in tensors)
        assert torch.equal(found.x, want.x)
    start = torch.zeros(2, SIZE).as_subclass(Tagged)
    assert type(solve(y=y, prior=flow, objective="map", start=start).z) is torch.Tensor


def test_measurements_without_numbers_are_named():
    with_weights = ff.MAP(torch.rand(3))
    assert_names("y", lambda: solve(y=Y.to("meta"), objective=with_weights))


def test_weights_of_inference_mode_are_refused():
    """They can take part in no gradient: torch says so somewhere in the middle of a solve."""
    net = nn.Conv2d(1, 1, 3, padding=1)
    flow = ff.realnvp(ff.RealNVPConfig(SHAPE, scales=1, hidden=2, blocks=0)).eval()
    with torch.inference_mode():
        parts = {"operator": copy.deepcopy(net), "prior": copy.deepcopy(flow)}
    for argument, part in parts.items():
        assert "inference_mode" in assert_names(
            argument, lambda a=argument, p=part: solve(**{a: p})
        )


def test_signatures_stay():
    for function in (ff.reconstruct, ff.measure, ff.sample_posterior, ff.recovery_bound):
        parameters = inspect.signature(function).parameters.values()
        assert all(p.kind is not p.VAR_KEYWORD for p in parameters) and function.__doc__
