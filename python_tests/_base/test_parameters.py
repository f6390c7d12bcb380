"""Parameters: what is taken, that they stay as they were, and their rows of a batch."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_names

from flowinv_fast import noise, operators

SHAPE = (1, 4, 4)


class Patches:
    """A density of 2 x 2 patches, standard normal."""

    shape = (1, 2, 2)

    def log_prob(self, x):
        return -0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def sample(self, n, generator=None):
        return torch.randn(n, *self.shape, generator=generator)


MAKE = {
    "std": lambda v: noise.Gaussian(v),
    "mean": lambda v: noise.Gaussian(0.1, v),
    "level": lambda v: noise.Sinusoidal(v),
    "period": lambda v: noise.Sinusoidal(period=v),
    "floor": lambda v: noise.Sinusoidal(floor=v),
    "ceiling": lambda v: noise.Radial(ceiling=v),
    "rate": lambda v: noise.Radial(rate=v),
    "form": lambda v: noise.Sinusoidal(form=v),
    "flow": lambda v: noise.FlowNoise(v),
    "scale": lambda v: noise.FlowNoise(Patches(), v),
    "places": lambda v: noise.PlacedFlowNoise(Patches(), v, 0.1),
    "bank": lambda v: noise.Digits(v),
    "count": lambda v: noise.Digits(torch.ones(1, 2, 2), v),
    "factor": lambda v: operators.Scale(v),
    "mask": lambda v: operators.Inpaint(v),
    "kernel": lambda v: operators.Blur(v),
    "measurements": lambda v: operators.GaussianSensing(v, SHAPE),
    "shape": lambda v: operators.GaussianSensing(3, v),
    "seed": lambda v: operators.GaussianSensing(3, SHAPE, v),
    "noise_inside": lambda v: operators.SignSensing(3, SHAPE, noise_inside=v),
    "widths": lambda v: operators.SignSensing(3, SHAPE, widths=v),
}
NUMBERS = ("std", "mean", "level", "factor", "mask", "kernel", "bank")
BAD = {
    "nan": math.nan,
    "nan-tensor": torch.tensor([[[1.0, math.nan]]]),
    "infinity": -math.inf,
    "word": "0.1",
    "none": None,
    "complex": 1j,
    "complex-tensor": torch.ones(1, 1, 1, dtype=torch.complex64),
    "empty": [],
    "empty-tensor": torch.ones(0, 2, 2),
    "ragged": [[1.0], [1.0, 2.0]],
    "object": object(),
    "class": Patches,
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("argument", MAKE)
def test_what_is_no_parameter_is_named(argument, value):
    assert_names(argument, lambda: MAKE[argument](value))


@pytest.mark.parametrize("argument", MAKE)
def test_true_is_no_number(argument):
    if argument not in ("mask", "noise_inside"):
        assert_names(argument, lambda: MAKE[argument](True))
    if argument in NUMBERS and argument != "mask":
        assert_names(argument, lambda: MAKE[argument](torch.ones(1, 3, 3, dtype=torch.bool)))


@pytest.mark.parametrize("argument", ["std", "level", "period", "floor", "rate", "scale", "count"])
def test_negative_numbers_are_named(argument):
    assert_names(argument, lambda: MAKE[argument](-1))


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy, torch.clone])
@pytest.mark.parametrize("argument", ["std", "mean", "level", "factor", "mask"])
def test_lists_arrays_and_tensors_are_taken_and_copied(argument, convert):
    """What is changed afterwards, the argument or what is read, changes no law."""
    values = torch.rand(3, 1, 1, 1, dtype=torch.float64) + 0.5
    given = convert(values)
    part = MAKE[argument](given)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    score = part.log_prob if hasattr(part, "log_prob") else part
    before = score(x)
    torch.testing.assert_close(before, _reference(argument, values, x))
    if isinstance(given, list):
        given[0][0][0][0] = 7.0
    else:
        given[0] = 7.0
    assert torch.equal(score(x), before)
    if hasattr(part, "log_prob"):
        getattr(part, argument)[0] = 7.0
        assert torch.equal(score(x), before)


def _reference(argument, values, x):
    if argument in ("factor", "mask"):
        return values * x
    rows = torch.arange(4, dtype=x.dtype).view(4, 1)
    wave = (values * torch.exp(torch.sin(2 * math.pi * rows / 16)) / math.e).clamp(0.001, 1)
    std = {"std": values, "mean": torch.tensor(0.1).double(), "level": wave}[argument]
    mean = values if argument == "mean" else torch.zeros_like(values)
    return torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)


def test_places_are_copied():
    places = torch.tensor([[0, 0, 0]])
    law, x = noise.PlacedFlowNoise(Patches(), places, 0.3), torch.randn(2, *SHAPE)
    before = law.log_prob(x)
    places[0, 1] = 2
    law.places[0, 1] = 2
    assert torch.equal(law.log_prob(x), before)
    for given in ([[0, 0, 0]], np.array([[0, 0, 0]], dtype=np.int32)):
        assert torch.equal(noise.PlacedFlowNoise(Patches(), given, 0.3).log_prob(x), before)


PARTS = {
    "gaussian": lambda: noise.Gaussian(torch.rand(3, 1, 1, 1) + 0.1),
    "sinusoidal": lambda: noise.Sinusoidal([0.1, 0.2, 0.3]),
    "radial": lambda: noise.Radial(),
    "flow": lambda: noise.FlowNoise(Patches(), 0.5),
    "placed": lambda: noise.PlacedFlowNoise(Patches(), torch.tensor([[0, 0, 0]]), 0.3),
    "digits": lambda: noise.Digits(torch.ones(1, 2, 2)),
    "scale": lambda: operators.Scale(torch.rand(3, 1, 1, 1)),
    "inpaint": lambda: operators.Inpaint(torch.rand(4, 4) > 0.5),
    "blur": lambda: operators.Blur(torch.rand(3, 3)),
    "downsample": lambda: operators.Downsample(2),
    "sensing": lambda: operators.GaussianSensing(3, SHAPE),
    "sign": lambda: operators.SignSensing(3, SHAPE),
    "composition": lambda: operators.Scale(2.0) @ operators.Blur(torch.rand(3, 3)),
}


@pytest.mark.parametrize("name", PARTS)
def test_attributes_are_set_once(name):
    part = PARTS[name]()
    public = [n for n in vars(part) if not n.startswith("_")] + list(getattr(part, "_buffers", ()))
    public += list(getattr(part, "_modules", ())) + list(getattr(part, "_numbers", ()))
    public = [n for n in public if n != "training"]
    assert public
    for attribute in public:
        with pytest.raises(AttributeError, match=f"{type(part).__name__}.{attribute} is fixed"):
            setattr(part, attribute, getattr(part, attribute))
        with pytest.raises(AttributeError, match="fixed"):
            delattr(part, attribute)


@pytest.mark.parametrize("name", PARTS)
def test_copies_and_pickles_do_the_same(name):
    part, x = PARTS[name](), torch.randn(3, *SHAPE)
    if name == "digits":
        return
    score = lambda p: p.log_prob(x.repeat(1, 1, 1, 1)) if hasattr(p, "log_prob") else p(x)
    if name == "flow":
        x = torch.randn(3, 1, 2, 2)
    before = score(part)
    for other in (copy.copy(part), copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert torch.equal(score(other), before)


@pytest.mark.parametrize("name", ["scale", "inpaint", "blur", "sensing", "composition"])
def test_operators_move_with_their_parameters(name):
    part, x = PARTS[name](), torch.randn(3, *SHAPE)
    before = part(x)
    part.double()
    assert all(v.dtype == torch.float64 for v in part.buffers())
    torch.testing.assert_close(part(x.double()).float(), before)
    other = PARTS[name]()
    other.load_state_dict({k: v.float() for k, v in part.state_dict().items()})
    torch.testing.assert_close(other(x), before)


def test_a_law_made_in_inference_mode_is_scored_with_gradients():
    with torch.inference_mode():
        laws = [PARTS[n]() for n in ("gaussian", "sinusoidal", "radial", "placed")]
        for law in laws:
            law.log_prob(torch.randn(3, *SHAPE, dtype=torch.float64))
    for law in laws:
        x = torch.randn(3, *SHAPE, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(law.log_prob(x).sum(), x)
        assert torch.isfinite(grad).all() and grad.any()


# --- rows -----------------------------------------------------------------------------------------


def test_one_dimension_broadcasts_from_the_right():
    """(W,) is per column and (C, 1, 1) per channel, also where B is W or C."""
    x = torch.randn(3, 3, 5, 3, dtype=torch.float64)
    values = torch.rand(3, dtype=torch.float64) + 0.5
    normal = lambda std: torch.distributions.Normal(0.0, std).log_prob(x).flatten(1).sum(1)
    for shape in [(3,), (3, 1, 1), (3, 1, 1, 1)]:
        own = values.view(shape)
        torch.testing.assert_close(noise.Gaussian(own).log_prob(x), normal(own))
        torch.testing.assert_close(operators.Scale(own)(x), own * x)
        some = slice(1, 3)
        got = noise.Gaussian(own).select(some, tuple(x.shape)).log_prob(x[some])
        torch.testing.assert_close(got, normal(own)[some])
        got = operators.Scale(own).select(some, tuple(x.shape))(x[some])
        torch.testing.assert_close(got, (own * x)[some])


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (4,), (3, 1), (1, 3, 1, 1, 1), (3, 2, 1, 1)])
def test_what_does_not_fit_is_one_clear_error(shape):
    x, own = torch.randn(3, 1, 5, 7), torch.rand(shape) + 0.5
    whole = (slice(0, 3), tuple(x.shape))
    for argument, part in (
        ("std", noise.Gaussian(own).log_prob),
        ("mean", noise.Gaussian(1.0, own).log_prob),
        ("factor", operators.Scale(own)),
        ("mask", operators.Inpaint(own)),
        ("std", noise.Gaussian(own).select(*whole).log_prob),
        ("factor", operators.Scale(own).select(*whole)),
    ):
        told = assert_names(argument, lambda part=part: part(x))
        assert "(3, 1, 1, 1)" in told and str(tuple(shape)) in told


def test_a_part_of_a_part():
    x, std = torch.randn(6, 1, 2, 2), torch.rand(6, 1, 1, 1) + 0.5
    for part, apply in (
        (noise.Gaussian(std), lambda p, v: p.log_prob(v)),
        (operators.Scale(std), lambda p, v: p(v)),
    ):
        some = part.select(slice(1, None), (6, 1, 2, 2)).select(slice(2, 4), (5, 1, 2, 2))
        torch.testing.assert_close(apply(some, x[3:5]), apply(part, x)[3:5])
        every_other = part.select(slice(None, None, 2), (6, 1, 2, 2))
        torch.testing.assert_close(apply(every_other, x[::2]), apply(part, x)[::2])
        assert_names("shape", lambda some=some: some.select(slice(0, 1), (6, 1, 2, 2)))


# --- residuals and images of other kinds ----------------------------------------------------------

LAWS = ("gaussian", "sinusoidal", "radial", "placed")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAWS)
def test_residuals_of_every_floating_dtype(name, dtype):
    law, wide = PARTS[name](), torch.randn(3, 1, 4, 8).to(dtype)
    x = wide[..., ::2]  # not contiguous
    got = law.log_prob(x)
    assert got.shape == (3,) and got.dtype in (torch.float32, torch.float64, dtype)
    want = law.log_prob(x.contiguous().double())
    torch.testing.assert_close(got.double(), want, rtol=60 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("name", [*LAWS, "flow"])
def test_integers_are_refused_as_residuals(name):
    assert_names("residual", lambda: PARTS[name]().log_prob(torch.ones(3, *SHAPE, dtype=torch.int)))


@pytest.mark.parametrize("name", ["scale", "inpaint", "blur", "downsample", "sensing", "sign"])
def test_what_is_no_batch_of_images_is_refused(name):
    assert_names("x", lambda: PARTS[name]()(torch.ones(3, *SHAPE, dtype=torch.int64)))
    assert_names("x", lambda: PARTS[name]()(torch.ones(4)))
    if name in ("blur", "downsample", "sensing", "sign"):
        assert_names("x", lambda: PARTS[name]()(torch.ones(*SHAPE)))


def test_numbers_that_a_dtype_cannot_hold_are_refused():
    x = torch.zeros(2, 1, 4, 4)
    assert math.isfinite(noise.Gaussian(1e-50).log_prob(x.double())[0])
    for std in (1e-50, 1e50, [1e-50], torch.full((4,), 1e50, dtype=torch.float64)):
        assert_names("std", lambda std=std: noise.Gaussian(std).log_prob(x))
    far = noise.Radial(floor=0.0, rate=1000.0)  # underflows a few pixels from the centre
    assert_names("floor", lambda: far.log_prob(x))
    loud = noise.Sinusoidal(1e30).std_like(x)
    assert torch.equal(loud, torch.ones_like(loud))  # the ceiling


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 1, 1, 9), (0, 1, 4, 4), (2, 3, 5, 1)])
def test_thin_images_and_empty_batches(shape):
    for law in (noise.Gaussian(0.1), noise.Sinusoidal(0.1), noise.Radial(0.1)):
        draw = law.sample(shape, torch.Generator().manual_seed(0))
        assert draw.shape == shape and torch.isfinite(law.log_prob(draw)).all()
    digits = noise.Digits(torch.ones(2, 1, 1), count=3).sample(shape)
    assert digits.shape == shape
    assert noise.Digits(torch.ones(1, 1, 1), count=0).sample(shape).sum() == 0
    assert noise.Digits(torch.ones(1, 1, 1), scale=0).sample(shape).sum() == 0
    assert_names("shape", lambda: noise.Digits(torch.ones(2, 1, 1)).sample((2, 0, 4, 4)))
    assert_names("shape", lambda: noise.Digits(torch.ones(2, 1, 1)).sample((2, 4)))
    assert_names("bank", lambda: noise.Digits(torch.ones(2, 9, 9)).sample((2, 1, 4, 4)))
