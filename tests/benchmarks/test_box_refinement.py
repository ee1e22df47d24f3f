"""The benchmarks of box refinement run in small, go on where they were broken off, and print their tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from medrl.data.track_phantoms import draw_videos, write_phantoms
from medrl.tasks.box_refinement import BoxRefinementTask
from medrl.training.box_refinement import draw_refinement_cases, every_object, overlaps

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("box_refinement", "box_carriers", "track_refinement"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    module.main()


def test_table(monkeypatch, tmp_path, capsys):
    import box_refinement

    videos = {"training": (4, 0), "validation": (1, 1), "test": (3, 2)}
    monkeypatch.setattr(box_refinement, "VIDEOS", videos)
    monkeypatch.setattr(box_refinement, "LARGE", box_refinement.SMALL)
    monkeypatch.setattr(box_refinement, "CARRIED", 5)
    some = ("cloning", "PPO, label of a clip")
    stages = {name: box_refinement.STAGES[name]._replace(updates=1) for name in some}
    monkeypatch.setattr(box_refinement, "STAGES", stages)
    monkeypatch.setattr(box_refinement, "VIEW", {"size": 8, "margin": 0.35, "template": True, "most": 4})
    monkeypatch.setitem(box_refinement.train.__kwdefaults__, "rows", 4)
    arguments = ("--output", tmp_path, "--seeds", 2, "--arms", *some)
    run(box_refinement, monkeypatch, *arguments)
    results = json.loads((tmp_path / "results_test.json").read_text())
    assert list(results) == ["pictures of all kinds", "striped boxes"]
    rows = results["striped boxes"]
    assert rows["oracle"]["iou"]["mean"] > rows["box that stands still"]["iou"]["mean"] + 0.1
    assert len(rows["PPO, label of a clip"]["seeds"]) == 2
    for row in rows.values():
        assert 0 <= row["iou"]["low"] <= row["iou"]["mean"] <= row["iou"]["high"] <= 1
    assert "| oracle |" in capsys.readouterr().out
    weights = tmp_path / "PPO_label_of_a_clip_1.pt"
    before = weights.stat().st_mtime_ns
    run(box_refinement, monkeypatch, *arguments)
    assert weights.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "results_test.json").read_text()) == results


@pytest.fixture(scope="module")
def clips():
    return draw_refinement_cases(2, 3, length=12, varied=False, frames=(14, 16), size=(320, 200))


def test_rules_that_carry_a_box(clips):
    from box_carriers import correlated, filtered

    task = BoxRefinementTask(cases=clips, frames=7)
    state = every_object(task, 4)
    still = overlaps(task, state, state.box[:, None].expand(-1, 7, -1)).mean()
    for boxes in (filtered(task, state), correlated(task, state, latest=False), correlated(task, state, latest=True)):
        assert float(overlaps(task, state, boxes).mean()) > float(still) + 0.1


def test_correlation_finds_a_shift_exactly(clips):
    from box_carriers import correlated

    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(1, 2, 3, 96, 96, dtype=torch.uint8)
    object_ = torch.randint(0, 255, (3, 24, 24), generator=generator, dtype=torch.uint8)
    images[0, 0, :, 20:44, 30:54], images[0, 1, :, 25:49, 27:51] = object_, object_
    box = torch.tensor([[30.0, 20, 54, 44]])
    cases = type(clips)(images, box.expand(1, 2, 1, 4).clone(), torch.tensor([1]))
    task = BoxRefinementTask(cases=cases)
    found = correlated(task, every_object(task, 0), latest=False)
    torch.testing.assert_close(found[0, 0], torch.tensor([27.0, 25, 51, 49]))


def test_tracks(monkeypatch, tmp_path, capsys):
    import track_refinement

    monkeypatch.setattr(
        track_refinement, "draw_videos", lambda count, seed: draw_videos(count, seed, frames=(12, 12), objects=(2, 3))
    )
    bundle = ROOT / "bundles/multi_object_tracking"
    run(track_refinement, monkeypatch, "--bundle", bundle, "--videos", 1, "--boxes", "gaps", "all")
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 2 + 3 * 3
    assert "| agent, refined: all |" in table
    folder = write_phantoms(tmp_path, 1, pictures=True, frames=(12, 12), objects=(2, 2), size=(320, 200))
    run(track_refinement, monkeypatch, "--bundle", bundle, "--data", folder, "--last-frame", 0)
    assert "| constant velocity, refined: gaps |" in capsys.readouterr().out
