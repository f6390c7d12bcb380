"""What the benchmarks write is what they measured; timings themselves are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def test_runs_for_several_models_add_up_to_one_file(bench, tmp_path):
    from harness import write

    where = {"machine": "A card", "commit": "abc", "device": "cuda", "rounds": 3}
    where["photographs"] = ("a", "b")  # JSON makes a list of it

    def run(date: int, rounds: int, *rows: tuple) -> list[tuple]:
        rows = [{"model": m, "batch": b, "run": date} for m, b in rows]
        result = {"conditions": {**where, "date": date, "rounds": rounds}, "rows": rows}
        path = write("map_step", result, tmp_path, same_row=("model", "batch"))
        assert path.name == "map_step-a-card-abc.json"
        found = json.loads(path.read_text())
        assert found["conditions"]["date"] == date
        return [tuple(row.values()) for row in found["rows"]]

    assert run(1, 3, ("M", 1), ("M", 16)) == [("M", 1, 1), ("M", 16, 1)]
    assert run(2, 3, ("C", 1)) == [("M", 1, 1), ("M", 16, 1), ("C", 1, 2)]
    assert run(3, 3, ("M", 16)) == [("M", 1, 1), ("C", 1, 2), ("M", 16, 3)]
    assert run(4, 5, ("M", 1)) == [("M", 1, 4)]  # not under the same conditions


def test_saved_bytes_leave_weights_out(bench):
    """Also weights that nobody holds but autograd."""
    from memory import saved_bytes, saved_per_image

    def decode(z):
        x = z.view(-1, 1, 8, 8)
        return F.conv2d(x, torch.ones(1, 1, 3, 3) / 9, padding=1).exp(), z.sum(1)

    y = torch.rand(2, 1, 8, 8)
    # An image's: exp, z, and the residual; the convolution keeps its weight alone.
    assert saved_per_image(decode, y) == 3 * 64 * 4
    assert saved_bytes(decode, y) > 2 * saved_per_image(decode, y)


def test_compiling_is_timed_and_not_looked_up():
    told = "import map_step, torch; print(torch.compiler.config.force_disable_caches)"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=BENCH, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


def test_convolutions_can_start_at_the_haar_transform(bench):
    from affine_flows import start_alike, start_at_haar

    from flowinv_fast.flows import GlowConfig, RealNVPConfig, glow, realnvp

    plain = realnvp(RealNVPConfig((3, 8, 8), scales=3, hidden=4, blocks=1))
    mixed = glow(GlowConfig((3, 8, 8), scales=3, hidden=4, blocks=1))
    start_alike(mixed, plain)
    start_at_haar(mixed)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(mixed.encode(x)[1], plain.encode(x)[1], atol=1e-4, rtol=0)
    first = next(i for i, layer in enumerate(mixed.layers) if type(layer).__name__ == "Squeeze")
    halves, nothing = x, torch.zeros(2)
    for layer in mixed.layers[first : first + 2]:
        halves, _ = layer.encode(halves, nothing)
    means = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(halves[:, :3], 2 * means)


def test_learnt_noise_of_dequantisation_is_a_density(bench):
    """Over the unit square 1 / q has mean 1 under q."""
    from affine_flows import Dequantiser

    from flowinv_fast.flows import GlowConfig

    dequantiser = Dequantiser(GlowConfig((1, 1, 2), scales=1)).double()
    with torch.no_grad():
        for parameter in dequantiser.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        image = torch.randn(1, 1, 1, 2, dtype=torch.float64).expand(50_000, 1, 1, 2)
        place, log_q = dequantiser(image)
    assert ((place > 0) & (place < 1)).all()
    weight = torch.exp(-log_q).clamp_max(100)
    assert abs(weight.mean() - 1) < 6 * weight.std() / len(weight) ** 0.5 + 0.05


def test_recomputed_couplings_take_the_memory_of_one(bench):
    from memory import kept_bytes
    from training import run_of

    from flowinv_fast.flows import AffineCoupling

    x = torch.rand(2, 2, 8, 8)
    kept = {}
    for count in (2, 4):
        run = [
            AffineCoupling(2, 4, 1, f"checkerboard_{('even', 'odd')[i % 2]}") for i in range(count)
        ]
        kept[count] = [kept_bytes(lambda r=r, c=run: run_of(c, r)(x))[0] for r in (False, True)]
    (plain, less), (plain_of_4, less_of_4) = kept[2], kept[4]
    assert less == less_of_4 < plain < plain_of_4


def test_trained_peers_are_our_flow(bench):
    from training import disagreement

    from flowinv_fast.flows import RealNVPConfig, TarFlowConfig

    config = RealNVPConfig((1, 8, 8), scales=2, hidden=4, blocks=1)
    far = disagreement(config, torch.rand(3, 1, 8, 8))
    assert len(far) == 3 and all(max(d.values()) < 1e-5 for d in far.values())
    config = TarFlowConfig((1, 8, 8), width=16, blocks=2, layers=2, heads=2)
    far = disagreement(config, torch.rand(3, 1, 8, 8))
    assert len(far) == 2 and all(max(d.values()) < 1e-5 for d in far.values())


def test_a_hole_is_filled_and_the_typed_text_is_left_alone(bench, monkeypatch):
    import fill

    monkeypatch.setitem(fill.TABLES, "sum", lambda results, a, b: [f"{int(a) + int(b)}"])
    hole = "<!-- table: sum {} 2 -->\n{}<!-- /table -->\n"
    page = "before 7\n" + hole.format(1, "stale\n") + "between\n" + hole.format(3, "") + "after"
    wanted = "before 7\n" + hole.format(1, "\n3\n\n") + "between\n" + hole.format(3, "\n5\n\n")
    assert fill.filled(page) == fill.filled(fill.filled(page)) == wanted + "after"
    with pytest.raises(KeyError, match="none"):
        fill.filled("<!-- table: none -->\n<!-- /table -->")


def test_the_newest_result_of_a_machine_is_shown(bench, tmp_path):
    from tables import newest

    for name, (machine, date) in {
        "a": ("A", "2026-01"),
        "b": ("A", "2026-02"),
        "c": ("B", "2025"),
    }.items():
        where = {"machine": machine, "date": date, "device": "cpu"}
        (tmp_path / f"memory-{name}.json").write_text(json.dumps({"conditions": where, "rows": []}))
    found = [result["conditions"] for result in newest(tmp_path, "memory")]
    assert [(c["machine"], c["date"]) for c in found] == [("A", "2026-02"), ("B", "2025")]
