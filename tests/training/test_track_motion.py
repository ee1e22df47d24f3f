"""The noise of detections is found in the detections."""

from __future__ import annotations

import pytest
import torch

from medrl.data.track_cases import stack_videos
from medrl.data.tracks import Video, make_boxes
from medrl.geometry.box_motion import MotionNoise
from medrl.training.track_motion import fit_noise, unlikelihood


def steady(jitter: float, count: int = 8, frames: int = 16, seed: int = 0):
    """Videos of one object each that walks steadily, seen with a jitter in shares of its sides."""
    generator = torch.Generator().manual_seed(seed)
    videos = []
    for number in range(count):
        speed = 3 * torch.randn(2, generator=generator)
        rows, truth = [], []
        for t in range(frames):
            side = torch.tensor([20.0, 50.0])
            shake = jitter * torch.randn(4, generator=generator)
            middle = torch.tensor([200.0, 150.0]) + t * speed
            at, sides = middle + shake[:2] * side, side * shake[2:].exp()
            rows.append((t, 1, torch.cat([at - sides / 2, at + sides / 2]).numpy(), 1.0))
            truth.append((t, 1, torch.cat([middle - side / 2, middle + side / 2]).numpy(), 1.0))
        videos.append(Video(f"{number}", frames, (400, 300), make_boxes(rows), make_boxes(truth)))
    return stack_videos(videos)


@pytest.mark.parametrize("jitter", [0.05, 0.15])
def test_jitter_is_found(jitter):
    fitted = fit_noise(steady(jitter))
    assert fitted.place == pytest.approx(jitter, rel=0.35)
    assert fitted.size == pytest.approx(jitter, rel=0.35)
    assert fitted.drift < 0.02


def test_the_fit_is_likelier():
    from medrl.training.track_motion import _own_detections

    box, seen = _own_detections(steady(0.15))
    noises = [MotionNoise(), fit_noise(steady(0.15))]
    first, second = (float(unlikelihood(MotionNoise(*map(torch.tensor, noise)), box, seen)) for noise in noises)
    assert second < first - 0.1


def test_without_objects_nothing_is_fitted():
    clip = steady(0.1, count=1, frames=4)
    assert fit_noise(clip._replace(owner=torch.full_like(clip.owner, -1))) == MotionNoise()
