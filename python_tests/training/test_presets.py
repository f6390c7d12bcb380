"""Presets: the paper's two priors are Table 1's, and all of them can be built."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowinv_fast.flows import (
    AffineCoupling,
    GlowConfig,
    RealNVPConfig,
    TarFlowConfig,
    build_flow,
)
from flowinv_fast.training.presets import PRESETS, chosen_preset

KINDS = {"realnvp": RealNVPConfig, "glow": GlowConfig, "tarflow": TarFlowConfig}

TABLE_1 = {
    "mnist-28": {
        "shape": (1, 28, 28),
        "bits": 8,
        "scales": 3,
        "blocks": 6,
        "hidden": 64,
        "batch": 128,
        "epochs": 200,
        "lr": 1e-3,
        "halve_every": 40,
        "max_grad_norm": 100,
        "penalty": 5e-5,
    },
    "celeba-hq-64": {
        "shape": (3, 64, 64),
        "bits": 5,
        "scales": 6,
        "blocks": 10,
        "hidden": 64,
        "batch": 16,
        "epochs": 300,
        "lr": 5e-4,
        "halve_every": 60,
        "max_grad_norm": 500,
        "penalty": 1e-5,
    },
}


@pytest.mark.parametrize("name", TABLE_1)
def test_the_papers_settings(name):
    preset = PRESETS[name]
    found = preset.config.to_dict() | vars(preset.train)
    assert {key: found[key] for key in TABLE_1[name]} == TABLE_1[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_encodes(name):
    preset = PRESETS[name]
    flow = build_flow(replace(preset.config, hidden=2))
    couplings = sum(isinstance(layer, AffineCoupling) for layer in flow.layers)
    assert couplings == 6 * (flow.config.scales - 1) + 4
    assert preset.about
    x = torch.rand(2, *preset.config.shape)
    with torch.no_grad():
        z, logdet = flow.encode(x.clone())
        back, _ = flow.decode(z)
    assert z.shape == (2, x[0].numel()) and logdet.isfinite().all()
    torch.testing.assert_close(back, x, atol=1e-4, rtol=0)


def test_the_colour_prior_has_34_couplings():
    assert len(build_flow(replace(PRESETS["celeba-hq-64"].config, hidden=2)).gains()) == 34


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_of_every_model_has_its_images(name):
    own = PRESETS[name]
    assert chosen_preset(name) == own
    for model, kind in KINDS.items():
        preset = chosen_preset(name, model)
        assert type(preset.config) is kind
        for fact in ("shape", "support", "bits", "alpha", "smoothing"):
            assert getattr(preset.config, fact) == getattr(own.config, fact)
        assert (preset.crops, preset.patches, preset.flips) == (own.crops, own.patches, own.flips)
        if kind is type(own.config):
            assert preset == own
