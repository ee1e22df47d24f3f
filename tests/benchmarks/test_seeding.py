"""The table of policies that place seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from medrl.gym import phantom_seeding
from medrl.networks.seednet import SeedNet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def seeding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("seeding", "seeding_policies"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import seeding

    return seeding


def test_the_mask_shown_gives_way_to_clearly_better_ones(seeding):
    expected = torch.tensor([[0.2, 0.24, 0.3, 0.1, 0.36], [0.5, 0.4, 0.54, 0.56, 0.55]])
    assert seeding.best_so_far(expected, 0.05).tolist() == [[0, 0, 2, 2, 4], [0, 0, 0, 3, 3]]
    assert seeding.best_so_far(expected, 0.0).tolist() == [[0, 1, 2, 2, 4], [0, 0, 2, 3, 3]]


class Knowing(SeedNet):
    """Believes in the truth, and sees no use in any seed."""

    def forward(self, image):
        output = super().forward(image)
        mask = self.truth[self.case].flatten(1).float()
        output[:, self.actions : -1] = 20 * mask - 10
        return output


def test_who_knows_the_truth_beats_who_does_not(seeding):
    cases = phantom_seeding(shape=(42, 42), grid=(10, 10)).cases
    network = Knowing(dims=2, grid=(10, 10), width=4)
    case = torch.arange(len(cases)).repeat_interleave(cases.pairs)
    network.truth, network.case = cases.masks(torch.arange(len(cases))), case
    scores = seeding.score_rows(cases, seeding.Looker(network), None)
    after = {name: float(values[:, -1].mean()) for name, values in scores.items() if values.ndim == 2}
    # believing in the truth, a rule is the oracle that knows it
    assert after["largest error of the segmentation head"] == after["oracle: largest error (simulated user)"]
    assert after["agent"] > after["agent, one look a seed"] + 0.1
    assert after["agent"] > after["random places, believed labels"]
    assert float(scores["network alone"].min()) == 1.0
    for name in after:
        assert bool((scores[f"{name} | best"] >= scores[f"{name} | kept"] - 1e-6).all())
        assert bool((scores[name][:, 0] == scores["agent"][:, 0]).all())
    table = seeding.write_table(scores).splitlines()
    assert len(table) == 3 + len(after)
    assert len({line.count("|") for line in table}) == 1
