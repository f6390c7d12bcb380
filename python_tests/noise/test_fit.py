"""Noise models fitted to recordings: known laws are recovered, bad recordings refused."""

from __future__ import annotations

import copy
import math
import pickle
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import assert_names
from torch.distributions import Laplace, StudentT
from toy_flows import AffineFlow

from flowinv_fast import ResultWarning, noise
from flowinv_fast.noise.fit import FAMILIES

SHAPE = (2, 8, 6)
SIZE = math.prod(SHAPE)
PAGE = (Path(__file__).parents[2] / "docs" / "noise.md").read_text()


class Drawn(AffineFlow):
    def sample(self, n, generator=None):
        return self.mean + self.std * torch.randn(n, *self.shape, generator=generator)


def random():
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def symmetric(power):
    return (power + power.flip((-2, -1)).roll((1, 1), (-2, -1))) / 2


LAWS = {
    "gaussian": lambda: noise.Gaussian(0.2, 0.1),
    "laplace": lambda: noise.FromDistribution(Laplace(0.1, 0.2)),
    "student-t": lambda: noise.FromDistribution(StudentT(3.0, 0.1, 0.2)),
    "stationary-gaussian": lambda: noise.StationaryGaussian(
        symmetric(torch.randn(SHAPE).exp()), torch.randn(SHAPE)
    ),
    "pixel-gaussian": lambda: noise.Gaussian(0.1 + torch.rand(SHAPE), torch.randn(SHAPE)),
    "low-rank-gaussian": lambda: noise.LowRankGaussian(
        torch.randn(SHAPE), torch.randn(3, *SHAPE), 0.1 + torch.rand(SHAPE)
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_known_law_is_chosen_and_recovered(name):
    law = LAWS[name]()
    found = noise.fit(law.sample((500, *SHAPE), random()))
    table = {score.name: score for score in found.table}
    assert set(table) == set(found.models) == set(FAMILIES)
    # By chance another law can score a little more, one that has this one as a special case.
    assert found.name == name or table[found.name].nats < table[name].nats + 0.003
    assert found.table[0].nats < table[name].nats + 0.003
    fresh = law.sample((400, *SHAPE), random())
    lost = (law.log_prob(fresh) - found.best.log_prob(fresh)) / SIZE
    bound = table[found.name].parameters / (400 * SIZE) + 4 * lost.std().item() / 20
    assert lost.mean() < bound  # about half a nat for each number fitted
    assert all(abs(row.z) < 6 for row in noise.compare(law, fresh).rows)


def test_parameters_are_those_of_the_law():
    draw = noise.FromDistribution(StudentT(4.0, 0.3, 0.2)).sample((400, *SHAPE), random())
    student = noise.fit(draw, families=["student-t"]).best._own
    assert abs(student.loc - 0.3) < 0.01 and abs(student.scale - 0.2) < 0.01
    assert abs(student.df - 4) < 0.6
    power = symmetric(torch.randn(SHAPE, dtype=torch.float64).exp())
    draw = noise.StationaryGaussian(power, 0.2).sample((500, *SHAPE), random())
    stationary = noise.fit(draw, families=["stationary-gaussian"]).best
    assert ((stationary.power / power).log()).abs().max() < 6 / math.sqrt(400)
    assert (stationary.mean - 0.2).abs().max() < 0.2  # drawn to one number
    law = LAWS["low-rank-gaussian"]()
    low_rank = noise.fit(law.sample((500, *SHAPE), random()), families=["low-rank-gaussian"]).best
    assert len(low_rank.factor) == 3
    spread = 0.1 + torch.rand(SHAPE)
    draw = noise.Gaussian(spread, 5.0).sample((500, *SHAPE), random())
    pixels = noise.fit(draw, families=["pixel-gaussian"]).best
    assert (pixels.std / spread - 1).abs().max() < 6 / math.sqrt(2 * 400)


def test_few_recordings_of_white_noise_look_white():
    """What chance makes of pixels is not fitted: the maps are flat, or cost next to nothing."""
    found = noise.fit(noise.Gaussian(0.2, 0.1).sample((10, 3, 12, 12), random()))
    table = {score.name: score for score in found.table}
    assert len(found.held_out) == 2 and found.table[0].nats < table["gaussian"].nats + 0.1
    assert table["pixel-gaussian"].nats > table["gaussian"].nats - 0.02


def test_the_split_is_whole_and_by_the_seed():
    x = noise.Gaussian(0.2).sample((20, *SHAPE), random()).double()
    only = dict(families=["gaussian"], held_out=0.3)
    first, again = noise.fit(x, seed=1, **only), noise.fit(x.numpy(), seed=1, **only)
    assert len(first.held_out) == 6 and torch.equal(first.held_out, again.held_out)
    assert first.table == again.table
    assert not torch.equal(first.held_out, noise.fit(x, seed=2, **only).held_out)
    rest = x[[i for i in range(20) if i not in first.held_out.tolist()]]
    assert math.isclose(first.best.mean, rest.mean(), abs_tol=1e-12)
    want = first.best.log_prob(x[first.held_out]) / SIZE
    score = first.table[0]
    assert math.isclose(score.nats, want.mean(), abs_tol=1e-4)
    assert math.isclose(score.error, want.std() / math.sqrt(6), rel_tol=1e-3)
    assert math.isclose(score.bits, -score.nats / math.log(2))


def test_a_flow_is_ranked_with_the_rest():
    mean, std = torch.randn(SHAPE), torch.rand(SHAPE) + 0.5
    flow = Drawn(mean, std)
    x = noise.Gaussian(0.5 * std, 0.5 * mean).sample((60, *SHAPE), random())
    model = noise.FlowNoise(flow, 0.5)
    found = noise.fit(x, families=["gaussian"], flow=model)
    assert found.name == "flow" and found.best is model and "flow" in repr(found)
    assert noise.fit(x, families=["gaussian"], flow=flow).name == "gaussian"  # of twice the size
    shifted = noise.FlowNoise(flow, 0.5, shift=3.0)
    torch.testing.assert_close(shifted.log_prob(x + 3), model.log_prob(x), rtol=1e-4, atol=1e-3)
    assert (shifted.sample((4, *SHAPE), random()).mean() - 3).abs() < 2


LEADS = {  # of scores over those of a simpler law, of 20 recordings; and which law is taken
    "within": (torch.tensor([-1.0, 1.0]).repeat(10) + 1 / math.sqrt(20), "gaussian"),
    "beyond": (torch.tensor([-1.0, 1.0]).repeat(10) + 4 / math.sqrt(20), "flow"),
    "outlier": (torch.tensor([0.1] * 19 + [100.0]), "flow"),
}


@pytest.mark.parametrize("case", LEADS)
def test_a_simpler_law_is_taken_where_it_is_as_good(case):
    lead, chosen = LEADS[case]
    x = noise.Gaussian(0.2).sample((100, *SHAPE), random())
    first = noise.fit(x, families=["gaussian"])
    order = x[first.held_out, 0, 0, 0].sort().values

    class Above:
        def log_prob(self, residual):
            rank = torch.searchsorted(order, residual[:, 0, 0, 0].contiguous())
            return first.best.log_prob(residual) + SIZE * lead[rank.clamp_max(19)]

    found = noise.fit(x, families=["gaussian"], flow=Above())
    assert [score.name for score in found.table] == ["flow", "gaussian"]
    assert found.name == chosen and f"Chosen: {chosen}" in found.message
    assert ("simplest" in found.message) == (chosen == "gaussian")


def test_vectors_and_every_mode():
    x = noise.Gaussian(0.2).sample((40, 9), random())
    with torch.inference_mode():
        found = noise.fit(x)
    assert not found.best.log_prob(x.requires_grad_()).isnan().any()
    assert torch.equal(noise.fit(x).held_out, found.held_out)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert repr(other) == repr(found)
    assert x.requires_grad and found.message in repr(found)


# --- warnings and errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told,samples,families",
    [
        ("record more", lambda: torch.randn(15, *SHAPE), ["pixel-gaussian"]),
        ("rounded or clipped", lambda: torch.randn(50, *SHAPE).clamp_min(0) / 9, None),
        ("rounded or clipped", lambda: (torch.randn(50, *SHAPE) / 2).round() / 255, None),
        ("copies", lambda: torch.randn(25, *SHAPE).repeat(2, 1, 1, 1), None),
    ],
    ids=["few", "clipped", "rounded", "copies"],
)
def test_what_makes_scores_doubtful_is_said(told, samples, families):
    with pytest.warns(ResultWarning, match=told) as caught:
        found = noise.fit(samples(), families=families)
    assert {w.filename for w in caught} == {__file__}
    assert all(math.isfinite(s.nats) for s in found.table)


def test_enough_recordings_pass_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noise.fit(noise.Gaussian(0.2).sample((60, *SHAPE), random()))


GOOD = torch.randn(10, 1, 4, 4)
BAD = {
    "nan": ("samples", lambda: noise.fit(torch.full((9, 1, 2, 2), math.nan))),
    "bytes": ("samples", lambda: noise.fit((50 * GOOD).round().abs().byte())),
    "whole": ("samples", lambda: noise.fit((50 * GOOD).round())),
    "complex": ("samples", lambda: noise.fit(GOOD + 0j)),
    "text": ("samples", lambda: noise.fit("recordings.npy")),
    "number": ("samples", lambda: noise.fit(0.5)),
    "grey": ("samples", lambda: noise.fit(GOOD[:, 0])),
    "few": ("samples", lambda: noise.fit(GOOD[:4])),
    "empty": ("samples", lambda: noise.fit(GOOD[:0])),
    "equal": ("samples", lambda: noise.fit(GOOD[:1].expand(9, 1, 4, 4))),
    "families": ("families", lambda: noise.fit(GOOD, families=["gausian"])),
    "families-name": ("families", lambda: noise.fit(GOOD, families="gaussian")),
    "families-none": ("families", lambda: noise.fit(GOOD, families=[])),
    "held_out": ("held_out", lambda: noise.fit(GOOD, held_out=1.0)),
    "held_out-most": ("held_out", lambda: noise.fit(GOOD, held_out=0.9)),
    "seed": ("seed", lambda: noise.fit(GOOD, seed=-1)),
    "flow": ("flow", lambda: noise.fit(GOOD, flow=3)),
    "shift": ("shift", lambda: noise.FlowNoise(AffineFlow(GOOD[0], GOOD[0]), shift=math.inf)),
    "model": ("model", lambda: noise.compare(object(), GOOD)),
    "compare": ("samples", lambda: noise.compare(noise.Gaussian(1.0), GOOD[:1])),
    "compare-seed": ("seed", lambda: noise.compare(noise.Gaussian(1.0), GOOD, seed=0.5)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case):
    assert_names(*BAD[case])


# --- comparison -----------------------------------------------------------------------------------


def test_what_a_law_misses_is_named():
    plain = noise.Gaussian(0.2)
    same = plain.sample((200, *SHAPE), random())
    assert all(abs(row.z) < 6 for row in noise.compare(plain, same).rows)
    missed = lambda x: {row.name for row in noise.compare(plain, x).missed}
    assert {"mean", "quantile 0.5"} <= missed(same + 0.05)
    assert {"standard deviation", "power, low", "power, high"} <= missed(2 * same)
    fixed = missed(same + 0.2 * torch.randn(SHAPE[2]))  # alike in every recording and row
    assert "fixed pattern" in fixed and "neighbours, down" not in fixed
    striped = 0.8 * same + 0.12 * torch.randn(200, 1, 1, SHAPE[2])
    assert {"neighbours, down", "neighbours, between channels"} <= missed(striped)
    tails = noise.FromDistribution(StudentT(3.0, 0.0, 0.2 / math.sqrt(3)))
    assert "largest deviation" in missed(tails.sample((200, *SHAPE), random()))
    assert "largest deviation" in repr(noise.compare(plain, same))


# --- the page -------------------------------------------------------------------------------------


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    """docs/noise.md: its Python in one namespace, its commands as a shell would split them."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    blocks = re.findall(r"```(python|sh)\n(.*?)```", PAGE, re.S)
    assert [kind for kind, _ in blocks] == ["python", "python", "sh", *3 * ["python"]]
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "noise.md", "exec", dont_inherit=True), names)
        else:
            words = shlex.split(block.replace("\\\n", " "))
            assert words.pop(0) == "flowinv-fast"
            subprocess.run([sys.executable, "-m", "flowinv_fast.cli", *words], check=True)
