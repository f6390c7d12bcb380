"""Flows whose posteriors are known in closed form, and a physics, for tests of the solver."""

from __future__ import annotations

import math

import torch

SHAPE = (1, 4, 4)
SIZE = math.prod(SHAPE)


class AffineFlow:
    """x = mean + std z, elementwise: a flow with a Gaussian density and closed-form posteriors."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        self.mean, self.std, self.shape = mean, std, tuple(mean.shape)

    def decode(self, z):
        logdet = self.std.log().sum().expand(z.shape[0])
        return self.mean + self.std * z.view(-1, *self.shape), logdet

    def encode(self, x):
        return ((x - self.mean) / self.std).flatten(1), -self.std.log().sum().expand(x.shape[0])

    def log_prob(self, x):
        return torch.distributions.Normal(self.mean, self.std).log_prob(x).flatten(1).sum(1)


class Physics:
    """Like one of deepinv: calling it adds noise."""

    def __init__(self, clean, sensor=lambda u: u):
        self.clean, self.then = clean, sensor

    def A(self, x, **kwargs):  # noqa: N802
        return self.clean(x)

    def A_dagger(self, y, x_init=None):  # noqa: N802
        return y

    def noise(self, u, **kwargs):
        return u + torch.randn_like(u)

    def sensor(self, u):
        return self.then(u)

    def __call__(self, x):
        raise AssertionError("called")
