"""What would follow if a detection were taken."""

from __future__ import annotations

import torch

from medrl.geometry.box_motion import MotionNoise, predict, start, update
from medrl.geometry.track_foresight import GATE, foresee

NOISE = MotionNoise(speed=0.2, drift=0.005)
BOX = torch.tensor([[100.0, 100.0, 120.0, 150.0]])
RIGHT, LEFT = torch.tensor([6.0, 0, 6, 0]), torch.tensor([-6.0, 0, -6, 0])


def walking(frames=6):
    """An object that has walked to the right, predicted for the next frame."""
    motion = start(BOX, NOISE)
    for t in range(1, frames):
        motion = update(predict(motion, NOISE), BOX + t * RIGHT, NOISE)
    return predict(motion, NOISE), BOX + frames * RIGHT


def test_the_chain_that_goes_on_is_nearer():
    """Two objects meet and pass on: right now they cannot be told apart, three frames later they can."""
    ahead, here = walking()
    both = torch.stack([here + 1, here - 1], 1)  # (1, 2, 4)
    later = torch.stack([torch.cat([here + t * RIGHT, here + t * LEFT]) for t in (1, 2, 3)])[None]
    told = foresee(ahead, NOISE, both, torch.ones(1, 2, dtype=torch.bool), later, torch.ones(1, 3, 2, dtype=torch.bool))
    assert told.shape == (1, 3, 3)
    assert (told[0, :, 0] == 1).all()
    # of an object that turned, only the way back is there: nothing is near
    turned = foresee(ahead, NOISE, both, torch.ones(1, 2, dtype=torch.bool), later[:, :, 1:],
                     torch.ones(1, 3, 1, dtype=torch.bool))  # fmt: skip
    assert (turned[0, :, 1] > 2 * told[0, :, 1]).all()
    assert (turned[0, :, 0] < 1).all()
    assert (turned[..., 1] <= GATE).all()


def test_frames_without_detections_say_nothing():
    ahead, here = walking()
    nothing = torch.zeros(1, 3, 1, dtype=torch.bool)
    later = here.expand(1, 3, 1, 4)
    one = torch.ones(1, 1, dtype=torch.bool)
    assert not foresee(ahead, NOISE, here[:, None], one, later, nothing).any()
    assert not foresee(ahead, NOISE, here[:, None], one, later[:, :0], nothing[:, :0]).any()
    partly = torch.tensor([[[True], [False], [False]]])
    told = foresee(ahead, NOISE, here[:, None], one, (here + RIGHT).expand(1, 3, 1, 4), partly)
    assert told[0, 0, 0] == 1  # of the one frame that has any
    missing = foresee(ahead, NOISE, here[:, None], ~one, (here + RIGHT).expand(1, 3, 1, 4), partly)
    assert not missing[0, 0].any()
    assert missing[0, 1, 0] == 1
