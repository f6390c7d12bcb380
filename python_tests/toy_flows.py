"""Flows whose posteriors are known in closed form, for tests of the solver."""

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
