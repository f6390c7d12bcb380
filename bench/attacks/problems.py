"""Priors, operators and noise models, good and bad, each with an independent form in float64.

A part says what has to happen with it: it must be solved ("solve"), it must be refused ("refuse"),
or either will do ("either") as long as what comes back is right.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from helpers import randomise
from torch import Tensor, nn
from toy_flows import AffineFlow

import flowinv_fast as ff

from . import reference as ref

SHAPES = ((1, 4, 4), (3, 4, 4))
FLOW_ONLY = ("map", "map-image", "asim-likelihood")  # objectives that need a density


class UserError(Exception):
    """Raised by a user's own callable; it has to come through untouched."""


@dataclass
class Part:
    """Something that is handed over, its meaning in float64, and what has to happen."""

    value: Any
    meaning: Callable[[Tensor], Tensor] | Any = None
    expect: str = "solve"
    label: str = ""


@dataclass
class Draws:
    """Tensors by a seed that hypothesis draws, so that it shrinks choices and not numbers."""

    generator: torch.Generator
    batch: int
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        values = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * values).to(self.dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=self.generator)


# --- priors ---------------------------------------------------------------------------------------


class Generator(nn.Module):
    """A generator without a density."""

    latent_dim = 5

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype):
        super().__init__()
        self.shape_, self.map = shape, nn.Linear(5, math.prod(shape), dtype=dtype)

    def forward(self, z: Tensor) -> Tensor:
        return self.map(z).sigmoid().view(-1, *self.shape_)


class Summed(AffineFlow):
    """A flow whose densities are one number for the whole batch."""

    def log_prob(self, x):
        return super().log_prob(x).sum()

    def decode(self, z):
        x, logdet = super().decode(z)
        return x, logdet.sum()


@functools.cache
def flow_of(shape: tuple[int, int, int], dtype: torch.dtype, support: str = "unbounded"):
    """A small RealNVP away from the identity, evaluation mode, without gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash((shape, support)) % 1000)
        config = ff.RealNVPConfig(shape, scales=2, hidden=4, blocks=1, support=support)
        flow = randomise(ff.realnvp(config), 0.2).to(dtype)
    return flow.eval().requires_grad_(False)


@functools.cache
def patch_flow(dtype: torch.dtype):
    """Of 2 x 2 pixels, for placed noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        flow = randomise(ff.realnvp(ff.RealNVPConfig((1, 2, 2), scales=1, hidden=3, blocks=0)), 0.2)
    return flow.to(dtype).eval().requires_grad_(False)


@functools.cache
def meaning_of(flow: Any) -> ref.RealNVP:
    return ref.RealNVP(flow)


@functools.cache
def frozen(shape: tuple[int, int, int]):
    return flow_of(shape, torch.float32).freeze()


def affine(d: Draws) -> Part:
    mean, std = d.uniform(*d.shape), d.uniform(*d.shape, low=0.3, high=1.5)
    return Part(AffineFlow(mean, std), ref.Affine(mean, std))


def trained(d: Draws, training: bool = False, gradients: bool = False) -> Part:
    flow = flow_of(d.shape, d.dtype)
    flow.train(training).requires_grad_(gradients)
    return Part(flow, meaning_of(flow))


def of_float32(d: Draws) -> Part:
    expect = "solve" if d.dtype == torch.float32 else "refuse"
    return Part(frozen(d.shape), meaning_of(flow_of(d.shape, torch.float32)), expect)


def bounded(d: Draws) -> Part:
    flow = flow_of(d.shape, d.dtype, "bounded")
    return Part(flow, meaning_of(flow), "either")


def generator(d: Draws) -> Part:
    with torch.random.fork_rng(devices=[]):
        network = Generator(d.shape, d.dtype).eval()
    weight, bias = network.map.weight.detach().double(), network.map.bias.detach().double()
    shape = d.shape
    meaning = lambda z: (z @ weight.T + bias).sigmoid().view(-1, *shape)
    return Part(network, type("G", (), {"decode": lambda self, z: (meaning(z), None)})())


def other_dtype(d: Draws) -> Part:
    other = torch.float64 if d.dtype == torch.float32 else torch.float32
    return Part(flow_of(d.shape, other), None, "refuse")


def summed(d: Draws) -> Part:
    mean, std = d.uniform(*d.shape), d.uniform(*d.shape, low=0.5)
    return Part(Summed(mean, std), ref.Affine(mean, std), "refuse" if d.batch > 1 else "either")


PRIORS: dict[str, Callable[[Draws], Part]] = {
    "affine": affine,
    "realnvp": trained,
    "realnvp in training mode": lambda d: trained(d, True),
    "realnvp with gradients": lambda d: trained(d, False, True),
    "frozen": of_float32,
    "bounded": bounded,
}
BAD_PRIORS: dict[str, Callable[[Draws], Part]] = {
    "a class": lambda d: Part(AffineFlow, None, "refuse"),
    "a name": lambda d: Part("fashion-28", None, "refuse"),
    "None": lambda d: Part(None, None, "refuse"),
    "another dtype": other_dtype,
    "one density for all": summed,
    "a tensor": lambda d: Part(d.normal(*d.shape), None, "refuse"),
}


# --- operators ------------------------------------------------------------------------------------


class Physics:
    """As of another library: sensor(A(x)) is noiseless, and a call adds noise."""

    def __init__(self, factor: float):
        self.factor = factor

    def A(self, x: Tensor) -> Tensor:
        return self.factor * x

    def A_dagger(self, y: Tensor) -> Tensor:
        return y / self.factor

    def noise(self, u: Tensor) -> Tensor:
        return u + 100

    def sensor(self, u: Tensor) -> Tensor:
        return u.tanh()

    def __call__(self, x: Tensor) -> Tensor:
        return self.sensor(self.noise(self.A(x)))


class HalfPhysics(nn.Module):
    """With an ``A`` and an ``A_dagger`` that mean something else: it is called."""

    def A(self, x: Tensor) -> Tensor:
        return 3 * x

    def A_dagger(self, y: Tensor) -> Tensor:
        return y / 3

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class Misnamed(nn.Module):
    """An attribute that happens to be called A."""

    def __init__(self):
        super().__init__()
        self.A = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class Noisy(nn.Module):
    """Dropout and batch statistics: in training mode no function of x alone."""

    def __init__(self, channels: int, dtype: torch.dtype):
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm2d(channels, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.drop(x))


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A parameter's shape; without a row per image where there are no images."""
    return () if 0 in shape else shape


def scale(d: Draws, *shape: int) -> Part:
    factor = d.uniform(*_rows(shape), low=0.3, high=2.0)
    return Part(ff.operators.Scale(factor), lambda x: factor.double() * x)


def inpaint(d: Draws, *shape: int) -> Part:
    mask = (d.uniform(*_rows(shape)) < 0.7).to(d.dtype)
    return Part(ff.operators.Inpaint(mask), lambda x: mask.double() * x)


def blur(d: Draws, height: int, width: int) -> Part:
    kernel = d.uniform(height, width)
    kernel = kernel / kernel.sum()
    return Part(ff.operators.Blur(kernel), lambda x: ref.blurred(x, kernel))


def sensing(d: Draws) -> Part:
    operator = ff.operators.GaussianSensing(6, d.shape, int(d.integers(100)))
    matrix = operator.matrix.double()
    return Part(operator, lambda x: x.flatten(1) @ matrix.T)


def one_bit(d: Draws) -> Part:
    operator = ff.operators.SignSensing(6, d.shape, int(d.integers(100)))
    matrix = operator.linear.matrix.double()
    return Part(operator, lambda x: (x.flatten(1) @ matrix.T).sign(), label="sign")


def composed(d: Draws) -> Part:
    inner, outer = scale(d, d.batch, 1, 1, 1), blur(d, 3, 3)
    return Part(outer.value @ inner.value, lambda x: outer.meaning(inner.meaning(x)))


def convolution(d: Draws) -> Part:
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(d.shape[0], 2, 3, padding=1, dtype=d.dtype).eval()
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    return Part(layer, lambda x: F.conv2d(x, weight, bias, padding=1))


def noisy(d: Draws, training: bool) -> Part:
    module = Noisy(d.shape[0], d.dtype).train(training)
    norm = lambda x: x / math.sqrt(1 + module.norm.eps)
    return Part(module, norm, "either" if training else "solve")


def raises(*_: Any) -> Any:
    raise UserError("mine")


def _quietly(x: Tensor) -> Tensor:
    with torch.no_grad():
        return 0.5 * x


OPERATORS: dict[str, Callable[[Draws], Part]] = {
    "identity": lambda d: Part(ff.operators.Identity(), lambda x: x),
    "scale": lambda d: Part(ff.operators.Scale(0.5), lambda x: 0.5 * x),
    "scale by a map": lambda d: scale(d, *d.shape),
    "scale by image": lambda d: scale(d, d.batch, 1, 1, 1),
    "inpaint": lambda d: inpaint(d, *d.shape),
    "inpaint of a row": lambda d: inpaint(d, d.shape[2]),
    "inpaint by image": lambda d: inpaint(d, d.batch, *d.shape),
    "blur": lambda d: blur(d, 3, 3),
    "wide blur": lambda d: blur(d, 1, 5),
    "downsample": lambda d: Part(ff.operators.Downsample(2), lambda x: ref.block_means(x, 2)),
    "sensing": sensing,
    "one bit": one_bit,
    "composition": composed,
    "a function": lambda d: Part(lambda x: x.sin() + 0.1 * x**2, lambda x: x.sin() + 0.1 * x**2),
    "a lambda of rows": lambda d: Part(
        lambda x: x.flatten(1)[:, ::2], lambda x: x.flatten(1)[:, ::2]
    ),
    "a convolution": convolution,
    "physics": lambda d: Part(Physics(0.5), lambda x: (0.5 * x).tanh()),
    "half a physics": lambda d: Part(HalfPhysics(), lambda x: 0.5 * x),
    "eval dropout": lambda d: noisy(d, False),
}
BAD_OPERATORS: dict[str, Callable[[Draws], Part]] = {
    "in place": lambda d: Part(lambda x: x.mul_(0.5), lambda x: 0.5 * x, "either"),
    "in place, unsafe": lambda d: Part(
        lambda x: (x.data.mul_(0.5), x)[1] * 1.0, lambda x: 0.5 * x, "either"
    ),
    "numpy": lambda d: Part(
        lambda x: torch.from_numpy(0.5 * x.detach().numpy()), lambda x: 0.5 * x, "refuse"
    ),
    "detach": lambda d: Part(lambda x: 0.5 * x.detach(), lambda x: 0.5 * x, "refuse"),
    "no_grad": lambda d: Part(_quietly, lambda x: 0.5 * x, "refuse"),
    "round": lambda d: Part(lambda x: (4 * x).round() / 4, None, "refuse"),
    "cropped": lambda d: Part(lambda x: x[:, :, :-1], lambda x: x, "refuse"),
    "half": lambda d: Part(lambda x: x.half(), lambda x: x, "refuse"),
    "complex": lambda d: Part(lambda x: torch.complex(x, x), lambda x: x, "refuse"),
    "a list": lambda d: Part(lambda x: [x], lambda x: x, "refuse"),
    "nothing": lambda d: Part(lambda x: None, lambda x: x, "refuse"),
    "NaN": lambda d: Part(lambda x: x * math.nan, lambda x: x, "refuse"),
    "a class": lambda d: Part(ff.operators.Identity, lambda x: x, "refuse"),
    "a word": lambda d: Part("blur", lambda x: x, "refuse"),
    "None": lambda d: Part(None, lambda x: x, "refuse"),
    "a number": lambda d: Part(3, lambda x: x, "refuse"),
    "raises": lambda d: Part(raises, lambda x: x, "either", "raises"),
    "training dropout": lambda d: noisy(d, True),
    "misnamed": lambda d: Part(Misnamed(), lambda x: 0.5 * x, "either"),
}


# --- noise ----------------------------------------------------------------------------------------


class Own:
    """A user's noise model; ``how`` is what is done to the densities (B, ...)."""

    def __init__(self, how: Callable[[Tensor], Any]):
        self.how = how

    def log_prob(self, residual: Tensor) -> Any:
        return self.how(-0.5 * (residual / 0.2) ** 2 - math.log(0.2) - 0.5 * ref.LOG_2PI)


def _own(how: Callable[[Tensor], Any], expect: str = "solve", label: str = "") -> Part:
    return Part(Own(how), lambda r: ref.normal_log_prob(r, 0.2), expect, label)


def gaussian(d: Draws, shape: tuple[int, ...], mean: bool = False) -> Part:
    shape = shape if d.batch else ()
    std = d.uniform(*shape, low=0.05, high=0.6)
    shift = 0.1 * d.normal(*shape) if mean else 0.0
    meaning = lambda r: ref.normal_log_prob(
        r, std.double(), shift.double() if isinstance(shift, Tensor) else 0.0
    )
    return Part(ff.noise.Gaussian(std, shift), meaning)


def patterned(d: Draws, y: tuple[int, ...], kind: str, per_image: bool) -> Part:
    if len(y) not in (2, 4):
        return gaussian(d, ())
    level = d.uniform(*(y[:1] if per_image and d.batch else ()), low=0.1, high=0.8)
    if kind == "radial":
        std = lambda: ref.radial_std(level, y[1:], 0.05, 0.01, 1.0)
        model = ff.noise.Radial(level, 0.1, 0.05, 0.01, 1.0)
    else:
        std = lambda: ref.sinusoidal_std(level, y[1:], kind, 5.0, 0.02, 1.0)
        model = ff.noise.Sinusoidal(level, 0.1, kind, 5.0, 0.02, 1.0)
    return Part(model, lambda r: ref.normal_log_prob(r, std(), 0.1))


def distribution(d: Draws, kind: str) -> Part:
    laws = torch.distributions
    scale = float(d.uniform(low=0.1, high=0.5))
    zero, tensor = torch.zeros((), dtype=d.dtype), torch.full((), scale, dtype=d.dtype)
    scale = float(tensor)
    if kind == "Laplace":
        meaning = lambda r: ref.sums(-r.abs() / scale - math.log(2 * scale))
        return Part(laws.Laplace(zero, tensor), meaning)
    if kind == "StudentT":
        constant = math.lgamma(2) - math.lgamma(1.5) - 0.5 * math.log(3 * math.pi)
        each = lambda r: constant - math.log(scale) - 2 * torch.log1p((r / scale) ** 2 / 3)
        return Part(laws.StudentT(zero + 3, zero, tensor), lambda r: ref.sums(each(r)))
    return Part(laws.Normal(zero, tensor), lambda r: ref.normal_log_prob(r, scale))


def independent(d: Draws, y: tuple[int, ...]) -> Part:
    std = d.uniform(*y[1:], low=0.1, high=0.5)
    normal = torch.distributions.Normal(torch.zeros_like(std), std)
    law = torch.distributions.Independent(normal, len(y) - 1)
    return Part(law, lambda r: ref.normal_log_prob(r, std.double()))


def flow_noise(d: Draws, y: tuple[int, ...]) -> Part:
    if y[1:] != d.shape:
        return gaussian(d, ())
    flow, factor = flow_of(d.shape, d.dtype), 0.5
    constant = math.prod(d.shape) * math.log(factor)
    meaning = lambda r: meaning_of(flow).log_prob(r / factor) - constant
    return Part(ff.noise.FlowNoise(flow, factor), meaning)


def placed_noise(d: Draws, y: tuple[int, ...]) -> Part:
    if y[1:] != d.shape or not y[0]:
        return gaussian(d, ())
    places = torch.tensor([[0, 0, 1], [d.shape[0] - 1, 2, int(d.integers(3))]])
    if int(d.integers(2)):
        places = places.expand(y[0], 2, 3).clone()
    flow = patch_flow(d.dtype)
    model = ff.noise.PlacedFlowNoise(flow, places, 0.1, 0.5)
    log_prob = meaning_of(flow).log_prob
    return Part(model, lambda r: ref.placed_log_prob(r, places, log_prob, 2, 0.1, 0.5))


Noise = Callable[[Draws, tuple[int, ...]], Part]
NOISES: dict[str, Noise] = {
    "gaussian": lambda d, y: gaussian(d, ()),
    "gaussian map": lambda d, y: gaussian(d, y[1:], True),
    "gaussian by image": lambda d, y: gaussian(d, (y[0], *[1] * (len(y) - 1)), True),
    "exp": lambda d, y: patterned(d, y, "exp", False),
    "expm1 by image": lambda d, y: patterned(d, y, "expm1", True),
    "radial": lambda d, y: patterned(d, y, "radial", False),
    "radial by image": lambda d, y: patterned(d, y, "radial", True),
    "Laplace": lambda d, y: distribution(d, "Laplace"),
    "StudentT": lambda d, y: distribution(d, "StudentT"),
    "Normal": lambda d, y: distribution(d, "Normal"),
    "Independent": independent,
    "flow": flow_noise,
    "placed": placed_noise,
    "own, (B,)": lambda d, y: _own(ref.sums),
    "own, (B, ...)": lambda d, y: _own(lambda each: each),
}
BAD_NOISES: dict[str, Noise] = {
    "a class": lambda d, y: Part(ff.noise.Gaussian, lambda r: 0 * ref.sums(r), "refuse"),
    "a name": lambda d, y: Part("gaussian", lambda r: 0 * ref.sums(r), "refuse"),
    "None": lambda d, y: Part(None, lambda r: 0 * ref.sums(r), "refuse"),
    "a number": lambda d, y: Part(0.1, lambda r: 0 * ref.sums(r), "refuse"),
    "one number": lambda d, y: _own(lambda each: each.sum(), "refuse" if d.batch > 1 else "either"),
    "cut": lambda d, y: _own(lambda each: ref.sums(each).detach(), "refuse"),
    "NaN": lambda d, y: _own(lambda each: ref.sums(each) * math.nan, "refuse"),
    "numpy": lambda d, y: _own(lambda each: ref.sums(each).detach().numpy(), "refuse"),
    "raises": lambda d, y: _own(raises, "either", "raises"),
    "of another size": lambda d, y: _own(lambda each: ref.sums(each)[:-1], "refuse"),
}
