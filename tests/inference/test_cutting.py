"""Videos in, masks out: at full size, of several objects, with the truth, and nothing half-written."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from cutting_examples import BrightCutter, moving_square
from monai.data import Dataset
from PIL import Image
from torch import nn

from medrl.data.videos import read_sequence, write_labels, write_video
from medrl.inference.cutting import CuttingInferer
from medrl.inference.cutting_assessment import CuttingAssessment, measure, summarise
from medrl.inference.cutting_transforms import LoadVideod, SaveMasksd, VideoAnswers, list_true_videos, list_videos
from medrl.inference.cutting_walk import follow, mask_box, true_box
from medrl.inference.prediction import CasePredictor
from medrl.networks.cutter import CuttingNetworks
from medrl.networks.policy import PolicyOutput
from medrl.types import InputError

RIGHT, STOP = 0, 8
OPTIONS = {"size": 12, "look": 8, "moves": 3, "history": 3}


class RightThenStop(nn.Module):
    """Moves the box to the right so often, by the steps made in the frame; always the widest context."""

    nvec = (9, 3)

    def __init__(self, times: int = 3) -> None:
        super().__init__()
        self.times = times
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, observation, memory=None):
        step = observation["vector"][:, 18:22].argmax(1)  # after 15 numbers of masks and 3 of the context
        logits = torch.zeros(len(step), 12)
        logits[torch.arange(len(step)), torch.where(step < self.times, RIGHT, STOP)] = 9.0
        logits[:, 11] = 9.0
        return PolicyOutput(logits, torch.zeros(len(step)), None)


@pytest.fixture
def networks():
    return CuttingNetworks(cutter=BrightCutter(), policy=RightThenStop())


@pytest.fixture
def inferer():
    return CuttingInferer(longest=24, **OPTIONS)


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "in/seq", moving_square(0))
    return tmp_path / "in/seq"


def predictor(inferer, networks, cases, output_dir, *, pictures=False, handlers=()):
    return CasePredictor(
        device="cpu", dataset=Dataset(cases, LoadVideod()), network=networks, inferer=inferer, output_dir=output_dir,
        postprocessing=SaveMasksd(output_dir=output_dir, pictures=pictures), answers=VideoAnswers(),
        arguments=["given"], val_handlers=list(handlers),
    )  # fmt: skip


def test_a_square_is_followed(inferer, networks, folder):
    given = read_sequence(folder)
    (cut,) = inferer(given.frames[None], networks, given=[given])
    truth = moving_square(0).masks
    assert torch.equal(cut.labels[0] > 0, truth[0])
    # 3 moves of 0.6 a frame lag behind 2 columns, but the context holds the square, in 12 cells across
    assert measure(cut.labels == 1, truth)["J"] > 0.85
    assert cut.box[0, :, 0].tolist() == pytest.approx([3, 4.8, 6.6, 8.4, 10.2, 12.0], abs=1e-4)
    assert cut.moves.tolist() == [[3, 3, 3, 3, 3, 3]]
    assert cut.context[0, 1:].tolist() == [2] * 5


def test_masks_are_drawn_at_the_size_of_the_video(networks, folder):
    given = read_sequence(folder)
    large = given._replace(
        frames=given.frames.repeat_interleave(4, 2).repeat_interleave(4, 3),
        masks=given.masks.repeat_interleave(4, 1).repeat_interleave(4, 2),
    )
    inferer = CuttingInferer(longest=24, **OPTIONS)
    cut = inferer.cut(large.frames, networks, large)
    assert cut.labels.shape == (6, 80, 96)
    truth = moving_square(0).masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert measure(cut.labels == 1, truth)["J"] > 0.85
    assert cut.box[0, 0].tolist() == [12, 16, 36, 40]


def test_a_box_is_cut_first(inferer, networks, folder):
    (folder / "00000.png").unlink()
    (folder / "box.txt").write_text("3,4,6,6")
    given = read_sequence(folder)
    cut = inferer.cut(given.frames, networks, given)
    truth = moving_square(0).masks
    assert float((cut.labels[0] > 0).sum()) == pytest.approx(36, abs=8)
    assert measure(cut.labels == 1, truth)["J"] > 0.85


def test_several_objects_keep_their_numbers(inferer, networks, folder):
    labels = np.asarray(Image.open(folder / "00000.png")).copy()
    frames = [Image.open(folder / f"{n:05d}.jpg").convert("RGB") for n in range(6)]
    for n, frame in enumerate(frames):  # a second square that stands still
        pixels = np.asarray(frame).copy()
        pixels[12:17, 2:7] = (200, 20, 20)
        Image.fromarray(pixels).save(folder / f"{n:05d}.jpg", quality=98)
    labels[labels > 0] = 3
    labels[12:17, 2:7] = 7
    write_labels(folder / "00000.png", labels)
    given = read_sequence(folder)
    assert given.objects == [3, 7]
    cut = inferer.cut(given.frames, networks, given)
    assert set(cut.labels[0].unique().tolist()) == {0, 3, 7}
    assert int((cut.labels[-1] == 3).sum()) > 25
    assert cut.box.shape == (2, 6, 4)


def test_rules_take_the_truth_only_where_they_are_told_it(inferer, networks, folder):
    given = read_sequence(folder)
    truth = moving_square(0).masks[None]
    best = inferer.cut_by_rule(given.frames, networks, given, true_box, context=1, truth=truth)
    assert measure(best.labels == 1, truth[0])["J"] > 0.9
    task, state = inferer.start(given.frames, networks, given)
    blind = follow(task, networks.policy, state)
    assert task.cases.truth[:, 1:].sum() == 0  # the inferer knows the first mask only
    task, state = inferer.start(given.frames, networks, given, 0 * truth)
    assert task.cases.truth.sum() == 0
    assert blind.visited.all()
    assert mask_box(task, state).shape == (1, 4)


def test_files(inferer, networks, folder, tmp_path):
    out = tmp_path / "out"
    predict = predictor(inferer, networks, list_videos(folder.parent), out, pictures=True)
    predict.run()
    predict.check()
    names = [f"{n:05d}.png" for n in range(6)]
    assert sorted(path.name for path in (out / "seq").iterdir()) == names
    with Image.open(out / "seq/00003.png") as image:
        assert (image.mode, image.size) == ("P", (24, 20))
        assert set(np.unique(np.asarray(image))) == {0, 1}
    entry = json.loads((out / "report.json").read_text())["cases"]["seq"]
    assert entry["files"] == [f"seq/{name}" for name in names] + ["seq.png", "seq.gif"]
    assert (entry["frames"], entry["objects"], entry["frames_without_object"]) == (6, [1], [0])
    with Image.open(out / "seq.gif") as animation:
        assert animation.n_frames == 6
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "seq", "seq.gif", "seq.png"]


@pytest.mark.parametrize("break_", ["mask", "frame", "gap", "sizes"])
def test_bad_videos_are_reported_and_leave_nothing(inferer, networks, folder, tmp_path, break_):
    write_video(folder.parent / "good", moving_square(1))
    if break_ == "mask":
        write_labels(folder / "00000.png", np.zeros((20, 24), np.uint8))
    elif break_ == "frame":
        (folder / "00004.jpg").write_bytes((folder / "00004.jpg").read_bytes()[:200])
    elif break_ == "gap":
        (folder / "00003.jpg").unlink()
    else:
        Image.new("RGB", (9, 9)).save(folder / "00002.jpg")
    out = tmp_path / "out"
    predict = predictor(inferer, networks, list_videos(folder.parent), out)
    predict.run()
    assert list(predict.failures) == ["seq"]
    assert predict.failures["seq"].startswith("seq")
    assert "\n" not in predict.failures["seq"]
    with pytest.raises(InputError, match="1 of 2"):
        predict.check()
    assert sorted(path.name for path in out.iterdir()) == ["good", "report.json"]


def test_assessment(inferer, networks, folder, tmp_path):
    write_video(folder.parent / "other", moving_square(0)._replace(name="other"))
    out = tmp_path / "out"
    handler = CuttingAssessment(out)
    cases = list_true_videos(folder.parent, "test")
    predictor(inferer, networks, cases, out, handlers=[handler]).run()
    summary = json.loads((out / "evaluation.json").read_text())
    assert summary["sequences"] == 2
    methods = summary["methods"]
    assert methods["agent"]["J"]["value"] > methods["static box"]["J"]["value"] + 0.2
    assert methods["true box"]["J"]["value"] > 0.9
    assert methods["true box"]["F"]["value"] > 0.97
    assert methods["static box"]["decay"]["value"] > 0.3
    assert set(summary["J"]["seq"]) == {"agent", "static box", "mask's box", "true box"}
    with (out / "evaluation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8


def test_summaries_by_hand():
    rows = [
        {"case": case, "object": 1, "method": "agent", "J": value, "F": 0.5, "decay": 0.1}
        for case, value in (("a", 0.2), ("a", 0.4), ("b", 0.9))
    ]
    methods = summarise(rows, resamples=200, seed=0)["methods"]["agent"]
    assert methods["J"]["value"] == pytest.approx(0.6)
    assert methods["J"]["low"] == pytest.approx(0.3)
    assert methods["J"]["high"] == pytest.approx(0.9)
    assert methods["F"] == {"value": 0.5, "low": 0.5, "high": 0.5}
