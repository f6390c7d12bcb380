"""What a layer of a flow is."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor, nn

from ..ops.frozen_flow import Record

Shape = tuple[int, int, int]
Level = float | Tensor  # std of noise on images: of all, or (B,) of each
Output = TypeVar("Output", Tensor, tuple[Tensor, Tensor])


class Layer(nn.Module, Generic[Output]):
    """One step of a flow. A layer of your own overrides ``encode`` and ``decode``.

    All sizes but the batch are known when a flow is built: it asks every layer what images look
    like after it. A layer that the compiled engine can run says so by its ``records``; a layer
    without them runs on torch. One that depends on the level of the noise on the images holds that
    as its ``level``, and ``Flow.at`` takes a copy of it at another.

    Example:
        >>> import torch
        >>> from flowinv_fast.flows import Flow, FlowConfig, Layer
        >>> class Double(Layer):
        ...     def encode(self, x, logdet):
        ...         return 2 * x, logdet + x[0].numel() * torch.tensor(2.0).log()
        ...     def decode(self, z, logdet):
        ...         return z / 2, logdet - z[0].numel() * torch.tensor(2.0).log()
        >>> flow = Flow([Double()], FlowConfig((1, 2, 2)))
        >>> flow.encode(torch.ones(1, 1, 2, 2))
        (tensor([[2., 2., 2., 2.]]), tensor([2.7726]))
    """

    level: Level | None = None

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Output, Tensor]:
        """Towards the latent.

        Args:
            x: (B, C, H, W) floating point. Without gradients it may be overwritten.
            logdet: running log-determinant (B,), float32 (float64 for float64); likewise.
        Returns:
            z (B, C, H, W) and logdet + log|det dz/dx|, shape (B,).
        """
        raise NotImplementedError

    def decode(self, z: Output, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of ``encode``; logdet (B,) grows by log|det dx/dz|. May overwrite likewise."""
        raise NotImplementedError

    def shape_after(self, shape: Shape) -> Shape:
        """(C, H, W) that goes on to the next layer, of inputs (C, H, W).

        Raises:
            ArgumentError: inputs that the layer does not fit.
        """
        return shape

    def records(self) -> list[Record] | None:
        """What the compiled engine runs in place of ``encode`` and ``decode``, with the weights as
        they are now; None: it does not know this layer."""
        return None

    def recomputable(self) -> bool:
        """Whether the layer has the two methods that ``encode_recomputed`` needs."""
        return False
