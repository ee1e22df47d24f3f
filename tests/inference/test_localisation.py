"""The search for all objects or none, with networks whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medrl.data.box_cases import BoxCases
from medrl.data.box_phantoms import draw_box_cases
from medrl.inference.localisation import LocalisationInferer, follow, refine, search
from medrl.inference.localisation_transforms import LoadSmallImaged
from medrl.networks.localisation import LocalisationHeads, LocalisationNet
from medrl.tasks.localisation import LocalisationTask
from medrl.types import InputError


class Knowing(nn.Module):
    """Sees the truth through the task: the expert's gains, and the logit of the IoU."""

    def __init__(self, task: LocalisationTask) -> None:
        super().__init__()
        self.task, self.kept, self.weight = task, None, nn.Parameter(torch.zeros(1))
        observe = task.observe

        def remember(state):
            self.kept = state
            return observe(state)

        task.observe = remember

    def forward(self, image):
        score = self.task.score(self.kept).clamp(1e-3, 1 - 1e-3)
        return torch.cat([self.task.action_gains(self.kept), score.logit()[:, None]], 1)

    def action_values(self, output, scale=None):
        return output[:, None, :-1]

    def split(self, output):
        return LocalisationHeads(output[:, None, None, :-1], output[:, -1])


@pytest.fixture
def knowing():
    task = LocalisationTask(draw_box_cases(12, np.random.default_rng(5), targets=(0, 1, 2, 3)), view=12)
    return task, Knowing(task)


def test_all_objects_are_found_once_and_none_where_there_is_none(knowing):
    task, network = knowing
    found = search(task, network, torch.arange(12), floor=0.0)
    hits = (found.logit >= 0).sum(1)
    wanted = task.cases.present.sum(1)
    assert hits[wanted == 0].sum() == 0
    assert float((hits == wanted).float().mean()) >= 0.8
    assert (hits <= wanted).all()
    for row in range(12):
        for number in range(int(hits[row])):
            path = found.paths[row][number]
            assert len(path) == int(found.steps[row, number]) + 1
            assert any(torch.allclose(place, found.box[row, number]) for place in path)
            assert found.spent[row, number] >= found.steps[row, number]


def test_a_walk_is_the_greedy_one_and_ends_with_the_trigger(knowing):
    task, network = knowing
    case = torch.arange(12)[task.cases.present.sum(1) == 1]
    walks = follow(task, network, task.start(case))
    for row, number in enumerate(case.tolist()):
        state = task.start(torch.tensor([number]))
        for step in range(int(walks.steps[row])):
            torch.testing.assert_close(walks.box[step, row], state.box[0])
            state = task.advance(state, task.expert(state))
        assert bool(walks.triggered[row]) == bool(state.triggered)
    if bool(walks.triggered.any()):
        last = walks.steps[walks.triggered][0]
        column = walks.logit[:, walks.triggered][:, 0]
        assert column[:last].isfinite().all()
        assert not column[last:].isfinite().any()


def test_only_triggers_count_if_asked(knowing):
    task, network = knowing
    found = search(task, network, torch.arange(12), floor=0.0, attended=False, limit=1)
    assert (found.logit[:, 0][found.logit[:, 0].isfinite()] > torch.tensor(0.59).logit()).all()


def test_refinement_never_believes_a_worse_box(knowing):
    task, network = knowing
    case = torch.arange(12)[task.cases.present.sum(1) > 0]
    truth = task.cases.boxes[case, 0]
    rough = truth + torch.tensor([3.0, -3.0, 5.0, 2.0])
    box, logit = refine(task, network, case, rough)
    before, after = (task.score(task.start(case, box=b)) for b in (rough, box))
    assert (after >= before - 1e-3).all()  # rounding
    assert float(after.mean()) > float(before.mean()) + 0.05
    torch.testing.assert_close(logit.sigmoid(), after, atol=2e-3, rtol=0)


def test_answers_are_in_the_files_pixels():
    torch.manual_seed(0)
    pixels = draw_box_cases(1, np.random.default_rng(0), targets=(1,)).images[0, 0].numpy()
    big = np.kron(pixels, np.ones((3, 3), np.uint8))
    network = LocalisationNet(channels=1, actions=9, view=12, width=4, hidden=16)
    inferer = LocalisationInferer(view=12, threshold=0.0, limit=2)
    data = LoadSmallImaged(longest=64)({"image": big})
    found = inferer(data["image"][None], network)[0]
    assert len(found) == 2
    same = inferer.detect(BoxCases(torch.from_numpy(pixels)[None, None]), network)[0]
    for one, other in zip(found, same, strict=True):
        np.testing.assert_allclose(one.box, 3 * np.array(other.box), atol=1e-3)
        np.testing.assert_allclose(one.path, 3 * other.path, atol=1e-3)
        assert one.score == pytest.approx(other.score)
    assert inferer.detect(BoxCases(torch.from_numpy(pixels)[None, None]), network, threshold=1.0) == [[]]


def test_answers_of_volumes_are_in_mm():
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    volume = generator.normal(100, 20, (1, 20, 16, 18)).astype(np.float32)
    matrix = np.diag([-2.0, 3.0, 2.5, 1.0])
    matrix[:3, 3] = (50, -20, 10)
    data = LoadSmallImaged(longest=16, dims=3)({"image": MetaTensor(volume, affine=matrix)})
    network = LocalisationNet(channels=1, actions=15, dims=3, view=16, width=4, hidden=16)
    found = LocalisationInferer(dims=3, view=16, threshold=0.0, limit=1)(data["image"][None], network)[0]
    low, high = np.array(found[0].box).reshape(2, 3)
    assert (low >= np.array([50 - 2 * 19.5, -21.5, 8.75]) - 2).all()
    assert (high <= np.array([51, 26.5, 53.75]) + 4).all()
    np.testing.assert_allclose(found[0].path[0].reshape(2, 3).mean(0), [31, 2.5, 31.25], atol=30)


def test_weights_of_another_kind_are_refused(tmp_path):
    network = LocalisationNet(channels=1, actions=9, view=12, width=4, hidden=16)
    with pytest.raises(InputError, match="for pictures, but the case is a volume"):
        LocalisationInferer(view=12)(torch.ones(1, 1, 8, 8, 8, dtype=torch.uint8), network)
    with pytest.raises(InputError, match=r"a.nii.gz: is a volume, but these weights are for pictures"):
        LoadSmallImaged(longest=16)({"image": tmp_path / "a.nii.gz"})
    with pytest.raises(InputError, match=r"a.png: is a picture, but these weights are for volumes"):
        LoadSmallImaged(longest=16, dims=3)({"image": tmp_path / "a.png"})
    with pytest.raises(InputError, match="answers is 'all'"):
        LocalisationInferer(answers="all")
    with pytest.raises(InputError, match=r"threshold is 1\.5"):
        LocalisationInferer(threshold=1.5)
    with pytest.raises(InputError, match="is no picture"):
        LoadSmallImaged(longest=16)({"image": np.zeros((3, 4, 5), np.float32)})
