"""Training of seeding agents: what a validation measures, what is kept, and the exact resume of its cases."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from probes import small_seed_cases

from medrl.networks.click_network import ClickNet
from medrl.networks.seed_networks import SeedNetworks
from medrl.networks.seednet import SeedHeads, SeedNet
from medrl.tasks.seeding import SeedingTask
from medrl.training.seeding import BestSeedNetworks, SeedingEvaluator, play


class Scripted(torch.nn.Module):
    """Places the seeds that a task's expert would, believes the middle, and rates masks by a given function."""

    def __init__(self, cases, rate) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.task, self.rate, self.calls = SeedingTask(cases), rate, 0

    def forward(self, image):
        return image.float()

    def split(self, output):
        rows = len(output)
        value = torch.zeros(rows, 2 * self.task.count + 1)
        value[:, self.calls % self.task.count] = 1.0
        self.calls += 1
        believed = torch.full((rows, output[0, 0].numel()), -1.0)
        return SeedHeads(value[:, None, None], believed, self.rate(self.calls).expand(rows))


def test_the_kept_mask_is_the_best_rated():
    cases = small_seed_cases()
    first = play(Scripted(cases, lambda n: torch.tensor(-float(n))), cases, 4)
    last = play(Scripted(cases, lambda n: torch.tensor(float(n))), cases, 4)
    assert first["iou"] == pytest.approx(first["start"])
    assert last["iou"] == pytest.approx(last["last"])
    assert first["best"] >= max(first["start"], first["last"])
    assert first["believed"] == 0.0
    task = SeedingTask(cases)
    case, pair = torch.arange(3).repeat_interleave(2), torch.arange(2).repeat(3)
    assert first["start"] == pytest.approx(float(task.score(task.start(case, pair)).mean()))


def test_the_evaluator_averages_over_sets_and_the_best_is_kept(tmp_path):
    torch.manual_seed(0)
    sets = [small_seed_cases(2, seed=1), small_seed_cases(3, seed=2)]
    network = SeedNet(grid=sets[0].grid, width=4)
    click = ClickNet(dims=2, channels=(4, 8, 8))
    best = BestSeedNetworks(tmp_path, click=click, settings={"a": 1})
    evaluator = SeedingEvaluator(device="cpu", val_data_loader=sets, network=network, max_seeds=3, val_handlers=[best])
    evaluator.run()
    alone = [play(network.eval(), cases, 3)["iou"] for cases in sets]
    assert evaluator.state.metrics["val_iou"] == pytest.approx(sum(alone) / 2, abs=1e-5)
    assert best.best == pytest.approx(sum(alone) / 2, abs=1e-5)
    whole = SeedNetworks([SeedNet(grid=sets[0].grid, width=4)], [ClickNet(dims=2, channels=(4, 8, 8))])
    whole.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    stored = whole.agents["2"].state_dict()
    torch.testing.assert_close(stored["stem.0.weight"], network.state_dict()["stem.0.weight"], atol=1e-3, rtol=1e-2)
    before = (tmp_path / "model.pt").read_bytes()
    best(SimpleNamespace(state=SimpleNamespace(metrics={"val_iou": best.best - 0.1}), network=network))
    assert (tmp_path / "model.pt").read_bytes() == before
    again = BestSeedNetworks(tmp_path, click=click, settings={})
    again.load_state_dict(best.state_dict())
    assert again.best == best.best


def test_saved_cases_come_back_with_their_tables():
    cases, other = small_seed_cases(seed=1), small_seed_cases(seed=2)
    assert not torch.equal(cases.image, other.image)
    other.load_state_dict(cases.state_dict())
    for name in ("image", "truth", "node", "table"):
        assert torch.equal(getattr(cases, name), getattr(other, name)), name
    with pytest.raises(ValueError, match="number, shape or grid"):
        other.load_state_dict(small_seed_cases(2).state_dict())
