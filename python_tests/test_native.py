"""The CUDA kernels' own source, run without a GPU: csrc/tests/host_shim.h makes fibers of threads.

The module is built with the shim in place of the CUDA toolkit (build/shim-..., kept between runs)
and every op is then sent through its CUDA launcher, with undefined behaviour trapped.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from flows.test_frozen import assert_exact, errors, random_flow
from helpers import build_shim, checked
from op_cases import CASES, IDS, acc
from ops import test_frozen_flow as layers
from ops.test_ops import as_double, compare, tensors_of

from flowinv_fast import ops
from flowinv_fast._base import backend
from flowinv_fast._base.tensors import accumulate_dtype

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shim_module():
    path = build_shim(ROOT)
    spec = importlib.util.spec_from_file_location("_C", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.build_info["cuda"] == "shim"
    return module


@pytest.fixture
def on_shim(shim_module, monkeypatch, seed):
    """CPU tensors go to the CUDA launchers, with the workspace that these want; all memory starts
    as NaN."""
    random.seed(seed)

    def partials(batch, n, like):
        tiles = -(-n // backend.constants.tile)
        acc = accumulate_dtype(like.dtype)
        return like.new_empty(batch * tiles, dtype=acc) if tiles > 1 else None

    monkeypatch.setattr(backend, "_C", shim_module)
    monkeypatch.setattr(backend, "choice", "auto")
    monkeypatch.setattr(backend, "execution", lambda tensor: (0, 1, 0))
    monkeypatch.setattr(backend, "partials", partials)
    torch.use_deterministic_algorithms(True)  # torch.empty fills with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_cuda_kernel_equals_the_reference(case, on_shim):
    """Under random schedules, for random shapes."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for _ in range(8):
            arguments = case.draw(dtype, torch.device("cpu"))
            lifted = arguments if "quantise" in case.name else as_double(arguments)
            n = max(a.numel() for a in arguments if isinstance(a, torch.Tensor))
            got = tensors_of(case.op(*arguments))
            if dtype == torch.bfloat16:
                for a, b in zip(got, tensors_of(case.twin(*lifted)), strict=True):
                    torch.testing.assert_close(a.double(), b.double(), rtol=0.02, atol=0.1)
            else:
                compare(got, case.twin(*lifted), dtype, n)


@pytest.mark.parametrize("precision,bound", [("fp32", 3e-5), ("tf32", 0.02), ("bf16", 0.2)])
def test_frozen_flow_on_the_cuda_kernels(precision, bound, on_shim):
    """Tensor-core fragments, both tilings, every mask; small, since each lane is a fiber."""
    for shape, config in (
        ((1, 4, 4), {"hidden": 16, "scales": 2, "blocks": 1}),
        ((1, 3, 5), {"hidden": 64, "scales": 1, "blocks": 1}),
        ((3, 2, 2), {"hidden": 5, "scales": 1, "blocks": 0}),
        ((32, 2, 2), {"hidden": 16, "scales": 1, "blocks": 0}),  # large tiles, most of them empty
    ):
        flow = random_flow(shape, 0.3, **config)
        frozen = flow.freeze(precision)
        assert frozen.compiled and frozen.work_bytes > 0
        for decode in (True, False):
            found = torch.cat([errors(flow, frozen, decode, b) for b in (0, 1, 2)], 1)
            assert_exact(found, bound, one_gradient=max(0.1, 10 * bound))
            assert precision == "fp32" or found[0].max() > 1e-5  # rounding that is there


@pytest.mark.parametrize("precision,bound", [("fp32", 3e-5), ("tf32", 0.02), ("bf16", 0.2)])
def test_layer_records_on_the_cuda_kernels(precision, bound, on_shim, monkeypatch):
    """Mixings, inverse couplings, widths and depths that change on the way, moves alone."""
    step = ["Q", "M", (layers.FIRST, 17, 1), "M", layers.PRIOR, "F"]
    small = {
        "glow": ((2, 4, 2), ["S", (layers.ODD, 4, 0), *step, (layers.EVEN, 3, 0, True), "S"]),
        "odd": ((5, 1, 3), ["M", (layers.EVEN, 5, 0, True)]),
    }
    monkeypatch.setattr(layers, "PLANS", small | {"moves": layers.PLANS["moves"]})
    for name in layers.PLANS:
        shape, records = layers.records_of(name)
        engine = layers.FrozenEngine(shape, records, precision)
        assert engine.work_bytes > 0
        for decode in (True, False):
            found = [layers.errors(engine, records, decode, b) for b in (0, 1, 3)]
            assert_exact(torch.cat(found, 1), bound, one_gradient=max(0.1, 10 * bound))


def test_frozen_flow_writes_all_it_saves(on_shim):
    """The same bytes under every schedule, the two behind the last zero, where memory was not."""
    shape, records = layers.records_of("pixel")
    engine, x = layers.FrozenEngine(shape, records), torch.randn(2, *shape)
    runs = [layers.OPS.frozen_flow_encode(x, x[:0], engine.handle) for _ in range(3)]
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other))
    assert not runs[0][2].view(torch.uint8)[:, -2:].any()


def test_same_bits_for_every_schedule(on_shim):
    for case in CASES:
        arguments = case.draw(torch.float32, torch.device("cpu"), 3)
        first = tensors_of(case.op(*arguments))
        for _ in range(3):
            assert all(map(torch.equal, first, tensors_of(case.op(*arguments))))


def test_images_of_many_tiles_and_batches_beyond_the_grid(on_shim):
    """Several partial sums an image; the shim's grids have 3 rows."""
    for shape in ((3, 5000), (11, 1025), (8, 1)):
        z = torch.randn(shape, dtype=torch.float64)
        want = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
        torch.testing.assert_close(ops.standard_normal_log_prob(z), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_images_of_many_tiles(dtype, on_shim):
    """An empty batch needs no partial sums, however large its images."""
    x, logdet = torch.zeros(0, 2, 30, 30, dtype=dtype), torch.zeros(0, dtype=acc(dtype))
    for mask in ("checkerboard_even", "channel_first"):
        raw = torch.zeros(0, 2 if mask == "channel_first" else 4, 30, 30, dtype=dtype)
        gain = torch.zeros(1 if mask == "channel_first" else 2, dtype=dtype)
        assert ops.affine_coupling_encode(x, raw, gain, logdet, mask)[0].shape == x.shape
    assert ops.standard_normal_log_prob(torch.zeros(0, 5000, dtype=dtype)).shape == (0,)
    assert ops.logit_encode(x, logdet, 0.05)[1].shape == (0,)


def test_adam_step_on_the_cuda_kernel(on_shim):
    x, state = torch.randn(3, 700), [torch.randn(3, 700), torch.rand(3, 700), torch.randn(3, 700)]
    grad, loss = torch.randn(3, 700), torch.tensor([1.0, float("nan"), 2.0])
    best_loss, active = torch.tensor([2.0, 2.0, 3.0]), torch.tensor([True, True, False])
    rates = ops.adam_rates(torch.full((3,), 0.1))[2]
    ours = [t.clone() for t in (x, *state, best_loss)]
    twin = [t.clone() for t in (x, *state, best_loss)]
    ops.adam_step_(ours[0], grad, *ours[1:4], loss, ours[4], active, rates)
    rest = (loss, twin[4], active, rates, 0.9, 0.999, 1e-8)
    ops.twin("adam_step_")(twin[0], grad, *twin[1:4], *rest)
    for a, b in zip(ours, twin, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(ours[0][1:], x[1:])


@pytest.mark.parametrize("program", ["test_shim", "test_math", "test_philox"])
def test_native_program(program, tmp_path):
    """Planted bugs are found, math.h's bounds hold, Philox gives the published numbers."""
    csrc = ROOT / "csrc"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-trapping-math"]
    # The shim's launch.cuh and mma.cuh take the place of those in csrc/common.
    include = ["-DFI_ISA=cuda", f"-I{csrc / 'tests' / 'shim'}", f"-I{csrc}"]
    source = str(csrc / "tests" / f"{program}.cpp")
    checked(["c++", *flags, *include, source, "-o", str(tmp_path / program)])
    checked([str(tmp_path / program)])
