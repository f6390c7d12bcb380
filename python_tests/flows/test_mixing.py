"""Invertible 1x1 convolutions: a rotation at first; inverse, determinant, gradients, freezing."""

from __future__ import annotations

import pytest
import torch

from flowinv_fast._base import backend
from flowinv_fast.flows import ChannelMixing, GlowConfig, glow, load_flow, save_flow


def moved(channels: int) -> ChannelMixing:
    """Away from the rotation, float64."""
    mixing = ChannelMixing(channels).double()
    with torch.no_grad():
        for parameter in mixing.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixing


def matrix(mixing: ChannelMixing, channels: int) -> torch.Tensor:
    """What it does to the channels of one pixel, from unit vectors."""
    units = torch.eye(channels, dtype=mixing.lower.dtype)[:, :, None, None]
    return mixing.encode(units, units.new_zeros(channels))[0][:, :, 0, 0].T


def test_starts_as_a_rotation():
    mixing = ChannelMixing(6)
    weight = matrix(mixing, 6)
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), atol=1e-5, rtol=0)
    _, logdet = mixing.encode(torch.rand(2, 6, 3, 5), torch.zeros(2))
    torch.testing.assert_close(logdet, torch.zeros(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (0, 2, 3, 3), (3, 8, 2, 1)])
def test_inverse_and_determinant(shape):
    mixing, before = moved(shape[1]), torch.randn(shape[0], dtype=torch.float64)
    x = torch.randn(shape[0], shape[1], shape[3], shape[2], dtype=torch.float64).transpose(2, 3)
    z, logdet = mixing.encode(x, before)
    weight = matrix(mixing, shape[1])
    torch.testing.assert_close(z, torch.einsum("oc,bchw->bohw", weight, x))
    growth = shape[2] * shape[3] * torch.linalg.slogdet(weight)[1]
    torch.testing.assert_close(logdet, before + growth)
    back, logdet = mixing.decode(z, logdet)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(logdet, before)


def test_gradients_follow_from_the_output():
    """encode_backward, which sees the output alone, against autograd."""
    mixing, x = moved(4), torch.randn(3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    z, logdet = mixing.encode(x, torch.zeros(3, dtype=torch.float64))
    grad, grad_logdet = torch.randn_like(z), torch.randn_like(logdet)
    want = torch.autograd.grad([z, logdet], [x, *mixing.parameters()], [grad, grad_logdet])
    back, grad_x, grads = mixing.encode_backward(z.detach(), grad, grad_logdet)
    torch.testing.assert_close(back, x.detach())
    torch.testing.assert_close(grad_x, want[0])
    for grad, wanted in zip(grads, want[1:], strict=True):
        torch.testing.assert_close(grad, wanted)


def test_recomputed_flow_has_the_gradients_of_a_plain_one():
    flow = glow(GlowConfig((2, 8, 8), 3, 4, 1)).double()
    with torch.no_grad():
        for gain in flow.gains():
            gain.normal_(0, 0.3)
    x, found = torch.rand(3, 2, 8, 8, dtype=torch.float64), []
    for flow.recompute in (False, True):
        flow.zero_grad()
        (-flow.log_prob(x).sum()).backward()
        found.append([p.grad.clone() for p in flow.parameters()])
    for plain, again in zip(*found):
        torch.testing.assert_close(plain, again, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("frozen", ["log_size", "lower", ""])
def test_recomputes_with_frozen_weights(frozen):
    """Any of the weights, or all of them."""
    flow = glow(GlowConfig((1, 8, 8), 2, 4, 1)).double()
    for name, parameter in flow.named_parameters():
        parameter.requires_grad_(bool(frozen) and not name.endswith(frozen))
    x, found = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True), []
    for flow.recompute in (False, True):
        found.append(torch.autograd.grad(flow.log_prob(x).sum(), x)[0])
    torch.testing.assert_close(*found)
    flow.float().freeze().log_prob(x.float()).sum().backward()


def test_freezes_and_is_kept_on_disk(tmp_path, monkeypatch):
    flow = glow(GlowConfig((1, 8, 8), 2, 4, 1))
    save_flow(flow, tmp_path / "flow.safetensors")
    loaded, x = load_flow(tmp_path / "flow.safetensors"), torch.rand(2, 1, 8, 8)
    assert loaded.config.mixing
    with torch.no_grad():
        torch.testing.assert_close(loaded.freeze().log_prob(x), flow.log_prob(x))
    monkeypatch.setattr(backend, "choice", "torch")
    frozen = loaded.freeze()
    assert not frozen.compiled
    with torch.no_grad():
        torch.testing.assert_close(frozen.log_prob(x), flow.log_prob(x))
        for precision in ("fp32", "bf16"):  # the mixing itself is float32 in either
            z, _ = loaded.freeze(precision).encode(x)
            assert z.dtype == torch.float32
            torch.testing.assert_close(loaded.freeze(precision).decode(z)[0], x, atol=0.05, rtol=0)
