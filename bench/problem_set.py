"""Everyday inverse problems for problems.py: operators, laws of the noise, and images."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Laplace, LowRankMultivariateNormal, StudentT

import flowinv_fast as ff
from flowinv_fast import noise, operators
from flowinv_fast.data import Crops, load_images
from flowinv_fast.experiments.datasets import COLOUR, GREY, Shape
from flowinv_fast.experiments.tasks import digits_over

# Images by set: numbers in the test sets of Fashion-MNIST and MNIST, and photographs to crop. None
# is in the package; the prior of photographs has seen none of them.
FIRST = {"tuning": 200, "report": 300}
PHOTOGRAPHS = {
    "tuning": ("aitzgorri", "bridge", "dune"),
    "report": ("building", "fruits", "greentock", "kleiber", "squirrel_cls", "twowings"),
}
FLOWS = {"grey": "fashion-28", "colour": "photo-64-small"}
SHAPES = {"grey": GREY, "colour": COLOUR}


# --- laws that the package lacks ------------------------------------------------------------------


class Correlated:
    """Stationary Gaussian noise on a torus: white noise blurred to ``width`` pixels, and a floor.

    Args:
        std: of a pixel. width: of the Gaussian blur. floor: standard deviation of a white part.
    """

    def __init__(self, shape: Shape, std: float = 0.1, width: float = 1.5, floor: float = 0.02):
        frequency = [torch.fft.fftfreq(n, dtype=torch.float64) for n in shape[1:]]
        squared = frequency[0][:, None] ** 2 + frequency[1] ** 2
        power = torch.exp(-4 * math.pi**2 * width**2 * squared)
        power = power / power.mean() * (std**2 - floor**2) + floor**2  # variance of a coefficient
        self.power = power.float()

    def log_prob(self, residual: Tensor) -> Tensor:
        size = torch.fft.fft2(residual, norm="ortho").abs().square()
        return -0.5 * (size / self.power + torch.log(2 * math.pi * self.power)).flatten(1).sum(1)

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        white = torch.fft.fft2(torch.randn(*shape, generator=generator))
        return torch.fft.ifft2(self.power.sqrt() * white).real


class Poisson:
    """Counts: y = n / peak with n ~ Poisson(peak f(x)). It scores y and f(x), not a residual.

    Below ``least`` counts the rate falls off exponentially: it stays positive, and has a slope.
    """

    def __init__(self, peak: float = 30.0, least: float = 0.1):
        self.peak, self.least = peak, least

    def log_likelihood(self, y: Tensor, fx: Tensor) -> Tensor:
        rate, counts, least = self.peak * fx, self.peak * y, self.least
        below = math.log(least) + (rate / least - 1).clamp(max=0)
        log_rate = torch.where(rate > least, rate.clamp_min(least).log(), below)
        terms = counts * log_rate - log_rate.exp() - torch.lgamma(counts + 1)
        return terms.flatten(1).sum(1)


class Impulses:
    """A share of the pixels is replaced by a uniform number, the others get Gaussian noise."""

    def __init__(self, share: float = 0.2, std: float = 0.05):
        self.share, self.std = share, std

    def log_prob(self, residual: Tensor) -> Tensor:
        peak = (1 - self.share) / (self.std * math.sqrt(2 * math.pi))
        bell = peak * torch.exp(-0.5 * (residual / self.std).square())
        return torch.log(bell + self.share).flatten(1).sum(1)


class Recorded:
    """A Gaussian fitted to recordings of noise: its mean, its strongest components, the rest."""

    def __init__(self, recordings: Tensor, components: int = 64):
        flat = recordings.flatten(1)
        mean = flat.mean(0)
        _, values, rows = torch.linalg.svd(flat - mean, full_matrices=False)
        factor = (values[:components, None] / math.sqrt(len(flat)) * rows[:components]).T
        rest = (flat - mean).square().mean(0) - factor.square().sum(1)
        self.law = LowRankMultivariateNormal(mean, factor, rest.clamp_min(1e-4))

    def log_prob(self, residual: Tensor) -> Tensor:
        return self.law.log_prob(residual.flatten(1))


# --- where noise comes from -----------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """Draws of a torch.distributions law of one number, by a generator of one's own."""

    law: Any

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return self.law.sample(torch.Size(shape))


@dataclass(frozen=True)
class Sensor:
    """A sensor: hot pixels in fixed places, columns that drift together, heavy-tailed readout."""

    seed: int = 0

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        own = torch.Generator().manual_seed(self.seed)
        hot = 0.3 * (torch.rand(*shape[1:], generator=own) < 0.03).float()
        columns = 0.08 * torch.randn(shape[0], 1, 1, shape[3], generator=generator)
        readout = Draws(StudentT(4.0, 0.0, 0.04)).sample(shape, generator)
        return hot + columns + readout


# --- operators that the package lacks -------------------------------------------------------------


class MaskedFourier(operators.LinearOperator):
    """Some columns of an image's spectrum, as magnetic resonance measures them: (B, 2, C, H, W)."""

    def __init__(self, shape: Shape, share: float = 0.4, centre: int = 8):
        super().__init__()
        width = shape[2]
        order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
        mask = torch.zeros(width)
        mask[: centre // 2] = mask[-centre // 2 :] = 1
        left = [i for i in order.tolist() if not mask[i]]
        mask[left[: max(0, round(share * width) - centre)]] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = self.mask * torch.fft.fft2(x, norm="ortho")
        return torch.stack([spectrum.real, spectrum.imag], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(self.mask * torch.complex(y[:, 0], y[:, 1]), norm="ortho").real

    def guess(self, y: Tensor) -> Tensor:
        return self.adjoint(y)


class CodedDiffraction:
    """Sizes of the spectra of an image under random phase masks, (B, masks, C, H, W); no guess."""

    def __init__(self, shape: Shape, masks: int = 4):
        angles = 2 * math.pi * torch.rand(masks, *shape, generator=torch.Generator().manual_seed(0))
        self.phases = torch.polar(torch.ones_like(angles), angles)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(self.phases * x[:, None], norm="ortho").abs()


# --- the problems ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """An inverse problem.

    Args:
        title: for readers.
        operator, law: what ``reconstruct`` is given.
        source: what noise is drawn from; of counts the law itself.
        picture: measurements (B, ...) to images, as one would show them; None: there is no such.
        linear: whether the operator is linear and has an adjoint.
        std: standard deviations of the noise by pixel, where they differ and are known.
        added: the noise itself, one to an image, where it is not drawn.
    """

    title: str
    operator: Any
    law: Any
    source: Any
    picture: Callable[[Tensor], Tensor] | None = None
    linear: bool = True
    std: Tensor | None = None
    added: Tensor | None = None

    @property
    def denoising(self) -> bool:
        """Whether the picture is the image and noise: what a denoiser such as BM3D can work on."""
        return isinstance(self.operator, (operators.Identity, operators.Scale))

    def measure(self, x: Tensor, seed: int) -> Tensor:
        """y of images, each by its own seed, so that it does not depend on the others."""
        if self.added is not None:
            return self.operator(x) + self.added
        return torch.cat([self._one(x[i : i + 1], 1000 * seed + i) for i in range(len(x))])

    def _one(self, x: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.law, Poisson):
            rate = self.law.peak * self.operator(x).clamp_min(0)
            return torch.poisson(rate, generator) / self.law.peak
        if isinstance(self.law, Impulses):
            y = self.operator(x)
            noisy = y + self.law.std * torch.randn(y.shape, generator=generator)
            struck = torch.rand(y.shape, generator=generator) < self.law.share
            return torch.where(struck, torch.rand(y.shape, generator=generator), noisy)
        return ff.measure(x, self.operator, self.source, generator)


def bell(width: float, size: int = 9) -> Tensor:
    """A Gaussian kernel (size, size) with sum one."""
    line = torch.exp(-0.5 * ((torch.arange(size) - size // 2) / width) ** 2)
    return line[:, None] * line / line.sum() ** 2


def problems(kind: str, digits: Tensor) -> dict[str, Problem]:
    """The problems on "grey" or "colour" images, by name.

    Args:
        digits: real digits (M, 1, 28, 28), one to each grey image; drawn four to a colour one.
    """
    shape, same, gaussian = SHAPES[kind], operators.Identity(), noise.Gaussian
    as_it_is = lambda y: y
    denoise = lambda title, law, source=None: Problem(title, same, law, source or law, as_it_is)
    white = lambda title, f, std: Problem(title, f, gaussian(std), gaussian(std), f.guess)
    rows = noise.Sinusoidal(0.2, form="exp")
    mask = (torch.rand(shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5).float()
    coded = CodedDiffraction(shape)
    sensor = Sensor()
    recordings = sensor.sample((400, *shape), torch.Generator().manual_seed(2))
    over, added = digits_over(digits, shape), None
    if kind == "grey":
        added = 0.5 * digits
    laplace, student = Laplace(0.0, 0.1), StudentT(2.0, 0.0, 0.05)
    return {
        "stripes": Problem(
            "stripes: rows of sinusoidal level 0.2",
            *(same, rows, rows, as_it_is),
            std=rows.std_like(torch.zeros(1, *shape)),
        ),
        "white": white("white noise, std 0.1", same, 0.1),
        "mask": white("50 % mask, std 0.05", operators.Inpaint(mask), 0.05),
        "blur": white("blur of 1.5 pixels, std 0.02", operators.Blur(bell(1.5)), 0.02),
        "super": white("super-resolution x 2, std 0.02", operators.Downsample(2), 0.02),
        "correlated": denoise("correlated noise, 1.5 pixels, std 0.1", Correlated(shape)),
        "laplace": denoise("Laplace noise, scale 0.1", laplace, Draws(laplace)),
        "student": denoise("Student's t, 2 degrees, scale 0.05", student, Draws(student)),
        "poisson": denoise("Poisson, 30 counts at white", Poisson()),
        "impulses": denoise("20 % impulses, std 0.05", Impulses()),
        "mri": white("MRI, 40 % of the lines, std 0.02", MaskedFourier(shape), 0.02),
        "phase": Problem(
            "phase retrieval, 4 coded masks, std 0.05",
            *(coded, gaussian(0.05), gaussian(0.05), None, False),
        ),
        "digits": Problem(
            "digits, y = 0.5 x + 0.5 d",
            *(over.operator, over.noise, over.noise_source, over.naive),
            added=added,
        ),
        "recorded": denoise("recorded sensor noise", Recorded(recordings), sensor),
    }


def images(kind: str, chosen: str, count: int, data: Path) -> tuple[Tensor, Tensor]:
    """Images (count, C, H, W) of a set, "tuning" or "report", and digits for them, in [0, 1].

    Args:
        data: a folder with fashion-mnist/, mnist/ and photos/test/.
    """
    first, test = FIRST[chosen], "t10k-images-idx3-ubyte.gz"
    read = lambda name, n: load_images(data / name / test, GREY)[first : first + n].float() / 255
    if kind == "grey":
        return read("fashion-mnist", count), read("mnist", count)
    with tempfile.TemporaryDirectory() as folder:
        for name in PHOTOGRAPHS[chosen]:
            source = (data / "photos" / "test" / f"{name}.jpg").resolve()
            os.symlink(source, Path(folder) / source.name)
        crops = Crops(folder, COLOUR).take(count, first)
    return crops.float() / 255, read("mnist", 4 * count)
