"""Generators without a density, x = G(z) with z ~ N(0, I): priors for MLE and CSGM."""

from .io import available_generators, load_generator, save_generator
from .nets import DCGAN, VAE, GeneratorConfig

__all__ = [
    "DCGAN",
    "VAE",
    "GeneratorConfig",
    "available_generators",
    "load_generator",
    "save_generator",
]
