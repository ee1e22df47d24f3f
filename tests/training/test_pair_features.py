"""Listwise training of features: targets by hand, errors in mm, learning, and an exact resume."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from probes import smooth_volume, stored_image
from torch import nn

from medrl.data.pair_images import prepare
from medrl.data.pair_samples import AlignedPair, PairSampler, Sample, Variety
from medrl.networks.features import CoarseNet, FeaturePair
from medrl.training.pair_features import FeatureTraining, draw_poses, listwise_loss, similarity_of

KINDS = ((14, 0.6, 25.0, 0.1), (6, 0.2, 8.0, 0.05))


@pytest.fixture(scope="module")
def pairs() -> list[AlignedPair]:
    """Balls of smooth HU, as CT and in another contrast as MR, in two storages."""
    generator, draw = np.random.default_rng(0), torch.Generator().manual_seed(0)
    found = []
    for number in range(2):
        volume = smooth_volume((30, 30, 30), draw).float() / 255

        def value(place, volume=volume):
            index = (place / 4 + 15).round().long().clamp(0, 29)
            return torch.where(place.norm(dim=1) < 45, volume[tuple(index.T)].double(), torch.nan)

        def ct(place, value=value):
            return torch.nan_to_num(400 * value(place) - 150, nan=-1000.0)

        def mr(place, value=value):
            return torch.nan_to_num(800 - 600 * value(place), nan=0.0)

        images = [stored_image(ct, generator, (3.0, 4.0, 3.5)), stored_image(mr, generator, (4.0, 3.0, 4.0))]
        found.append(AlignedPair(f"ball_{number}", f"ball_{number}", *map(prepare, images)))
    return found


def build(pairs, **options) -> FeatureTraining:
    variety = Variety(own=0.0, same=0.0, moving_degrees=20.0, any_moving=0.0, any_fixed=0.0, voxels=24, lattice=40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair = FeaturePair(*(CoarseNet(channels=(8, 8), features=6) for _ in range(2)))
    options = {"kinds": KINDS, "width_mm": 4.0, "count": 250, "updates": 60, "batch_size": 2, "bf16": False} | options
    return FeatureTraining(pair, PairSampler(pairs, variety=variety, seed=1), learning_rate=1e-2, **options)


def test_the_loss_by_hand():
    score = torch.tensor([0.0, math.log(2)])  # shares 1/3, 2/3
    error_mm = torch.tensor([0.0, 2 * math.log(3)])  # at a width of 2 mm: 3/4, 1/4
    wanted = 0.75 * math.log(0.75 * 3) + 0.25 * math.log(0.25 * 3 / 2)
    assert float(listwise_loss(score, error_mm, 2.0)) == pytest.approx(wanted, abs=1e-6)
    assert float(listwise_loss(-error_mm / 2 + 7, error_mm, 2.0)) == pytest.approx(0, abs=1e-6)


def sample_of(truth: torch.Tensor, generator: torch.Generator) -> Sample:
    volume = smooth_volume((24, 24, 24), generator).float() / 255
    image = torch.stack([volume, volume.roll(5, 0)])
    shared = 40 * torch.rand(30, 3, generator=generator) - 20
    return Sample(image, image, ("ct", "ct"), truth, torch.ones(24, 24, 24, dtype=torch.bool), shared)


def test_poses_and_their_errors(torch_generator):
    truth = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    truth[:3, 3] = torch.tensor([5.0, -3.0, 1.0])
    sample = sample_of(truth, torch_generator)
    kinds = ((20, 0.0, 12.0, 0.0), (20, 0.5, 0.0, 0.0), (20, 0.0, 0.0, 0.3))
    poses, error_mm = draw_poses(sample, kinds, torch_generator)
    assert (poses.shape, error_mm.shape) == ((61, 4, 4), (61,))
    torch.testing.assert_close(poses[-1], truth)
    assert float(error_mm[-1]) == 0
    shift = (poses[:20, :3, 3] - truth[:3, 3]).norm(dim=1)
    torch.testing.assert_close(error_mm[:20], shift / 2, atol=1e-4, rtol=0)  # in mm of the fixed image
    assert 8 < float(shift.max()) <= 12
    # turns and sizes are about the middle of the shared tissue: it stays where it is
    middle = sample.shared_mm.mean(0)
    there = poses[20:60, :3, :3] @ middle + poses[20:60, :3, 3]
    torch.testing.assert_close(there, (2 * middle + truth[:3, 3]).expand(40, 3), atol=1e-3, rtol=0)
    size = torch.linalg.det(poses[40:60, :3, :3]) ** (1 / 3) / 2
    arm = (sample.shared_mm - middle).norm(dim=1).mean()
    torch.testing.assert_close(error_mm[40:60], (size - 1).abs() * arm, atol=1e-3, rtol=0)


class Same(nn.Module):
    """Features that are the image itself."""

    def forward(self, image):
        return nn.functional.normalize(torch.cat([image - 0.5, torch.full_like(image[:, :1], 0.05)], 1), dim=1)


def test_the_truth_is_most_similar_for_features_that_agree(torch_generator):
    sample = sample_of(torch.eye(4), torch_generator)
    poses, error_mm = draw_poses(sample, KINDS, torch_generator)
    pair = FeaturePair(Same(), Same())
    score = similarity_of(pair, sample, poses, count=500, bf16=False, generator=torch_generator)
    assert int(score.argmax()) == len(poses) - 1
    assert float(score[-1].detach()) == pytest.approx(math.exp(3), abs=0.05)  # all products are 1
    assert float(torch.corrcoef(torch.stack([score.detach(), -error_mm]))[0, 1]) > 0.4


def test_features_learn(pairs):
    training = build(pairs)
    numbers = [training.learn() for _ in range(60)]
    first, last = ([sum(n[name] for n in part) / len(part) for name in ("loss", "error_mm")]
                   for part in (numbers[:10], numbers[-10:]))  # fmt: skip
    assert last[0] < 0.8 * first[0]
    assert last[1] < 0.8 * first[1]


def test_a_resume_is_exact(pairs, tmp_path):
    whole = build(pairs, updates=6).run().state_dict()
    paths = {"checkpoint": tmp_path / "run.ckpt", "curve": tmp_path / "curves" / "run.jsonl", "save_every": 2}
    cut = build(pairs, updates=6, **paths)
    learn, count = cut.learn, []

    def stop_in_the_fifth():
        if len(count) == 4:
            raise KeyboardInterrupt
        count.append(1)
        return learn()

    cut.learn = stop_in_the_fifth
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    resumed = build(pairs, updates=6, **paths)
    average = resumed.run()
    assert resumed.update == 6
    for name, value in average.state_dict().items():
        assert torch.equal(value, whole[name]), name
    lines = [json.loads(line) for line in paths["curve"].read_text().splitlines()]
    assert [line["update"] for line in lines] == [2, 4, 6]
    assert set(lines[0]) == {"update", "loss", "error_mm", "seconds_per_update"}
