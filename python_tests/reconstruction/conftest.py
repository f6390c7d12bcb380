"""What the tests of reconstruction share."""

from __future__ import annotations

import pytest
import torch
from toy_flows import SHAPE

from flowinv_fast.flows import RealNVPConfig, realnvp


@pytest.fixture
def flow():
    """A small RealNVP away from the identity, float32."""
    model = realnvp(RealNVPConfig(SHAPE, scales=2, hidden=4, blocks=1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gain", "bias")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model
