"""Whole sessions as an inferer, at once and slice by slice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bright import BrightAgent, BrightClicks, bright_image, bright_networks, clicks_on, overlap, ras
from monai.data import MetaTensor

from medrl.data.seeds import make_seeds, seed_voxels
from medrl.geometry.segmenters import RandomWalker
from medrl.inference.seeding import SeedingInferer, split_clicks
from medrl.inference.slicewise import _Stack
from medrl.networks.seed_networks import SeedNetworks, compact_weights
from medrl.types import InputError

SMALL = {"2": (30, 30), "3": (18, 18, 18)}  # as JSON has it


def inferer(**options) -> SeedingInferer:
    return SeedingInferer(lattice=SMALL, agent_share=0.0, **options)


def test_one_image_and_a_batch_agree():
    image, truth = bright_image()
    clicks = clicks_on(image)
    batch = MetaTensor(torch.stack([image.as_tensor()] * 2), affine=torch.stack([image.affine] * 2))
    one = inferer()(image[None], bright_networks(), seeds=[clicks])[0]
    two = inferer()(batch, bright_networks(), seeds=[clicks, None])
    assert torch.equal(one.mask, two[0].mask)
    assert overlap(two[1].mask[0], truth) > 0.9
    assert two[1].user_count == 0
    assert inferer()(image[None], bright_networks())[0].user_count == 0


def test_the_first_click_of_each_kind_starts_and_others_correct():
    image, _ = bright_image()
    clicks = make_seeds([ras(image, n, 9, 8) for n in (2, 10, 3, 11, 20)], [False, True, False, True, True])
    first, later = split_clicks(clicks)
    assert first.foreground.tolist() == [False, True]
    assert torch.equal(later.position_ras, clicks.position_ras[2:])
    result = inferer()(image[None], bright_networks(), seeds=[clicks])[0]
    assert result.user_count == 5
    voxels = seed_voxels(result.seeds, image)[:5]
    assert torch.equal(voxels[:, 0], torch.tensor([2, 10, 3, 11, 20]))  # as given
    assert result.mask[0][tuple(voxels.T)].tolist() == [0, 1, 0, 1, 1]


def test_masks_on_the_way():
    image, truth = bright_image()
    options = {"prior": False, "segmenter": RandomWalker(), "counts": (0, 1, 10)}
    result = inferer(**options)(image[None], bright_networks(), seeds=[clicks_on(image)])[0]
    assert list(result.masks) == ["network", "random walker", "0", "1", "10"]
    scores = {name: overlap(mask, truth) for name, mask in result.masks.items()}
    assert scores["network"] > 0.95
    assert torch.equal(result.masks["random walker"], result.masks["0"])
    assert scores["0"] + 0.05 < scores["1"] <= scores["10"] + 0.05


def test_slices_follow_the_object():
    matrix = np.diag([1.0, -1.0, 3.0, 1.0])[[2, 0, 1, 3]]  # the thick axis, the third of the file, points to the right
    image, truth = bright_image((30, 26, 22), affine=matrix)
    clicks = make_seeds([ras(image, 14, 12, 10), ras(image, 3, 3, 10)], [True, False])
    result = inferer(mode="slices")(image[None], bright_networks(), seeds=[clicks])[0]
    mask = result.mask[0].bool()
    assert overlap(mask, truth) > 0.85
    filled = [k for k in range(22) if mask[:, :, k].any()]
    assert filled == list(range(filled[0], filled[-1] + 1))
    assert result.user_count == 2
    assert len(result.seeds.foreground) > 2 + len(filled)  # each slice has carried seeds


def test_the_networks_for_volumes_tell_where_slices_end(monkeypatch):
    image, truth = bright_image((30, 26, 22))
    clicks, rules = clicks_on(image), inferer().rules
    stack = _Stack(image, clicks, bright_networks(), rules)
    seen = truth.movedim(stack.axis, 0).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert len(stack.extent ^ set(seen)) <= 2
    alone = _Stack(image, clicks, SeedNetworks([BrightAgent(2)], []), rules)
    assert alone.extent == set(range(alone.count))
    start = stack.clicked[0]
    monkeypatch.setattr(_Stack, "believed_extent", lambda self: {start, start + 1})
    mask = inferer(mode="slices")(image[None], bright_networks(), seeds=[clicks])[0].mask[0].bool()
    assert mask.movedim(stack.axis, 0).flatten(1).any(1).nonzero()[:, 0].tolist() == [start, start + 1]


def test_slices_end_where_the_object_does():
    image, truth = bright_image((26, 26, 16), affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    truth[:, :, 10:] = False
    image = MetaTensor(torch.where(truth, 1200.0, 200.0)[None] + 20 * torch.rand(1, *truth.shape), affine=image.affine)
    clicks = make_seeds([ras(image, 12, 12, 7), ras(image, 3, 3, 7)], [True, False])
    mask = inferer(mode="slices")(image[None], bright_networks(), seeds=[clicks])[0].mask[0].bool()
    assert not mask[:, :, 11:].any()
    assert mask[:, :, 5:10].flatten(0, 1).any(0).all()


def test_bad_input_in_one_line():
    image, _ = bright_image()
    network = bright_networks()
    with pytest.raises(InputError, match="mode is '3d'"):
        inferer(mode="3d")
    for mode in ("volume", "slices"):
        with pytest.raises(InputError, match="outside the image"):
            inferer(mode=mode)(image[None], network, seeds=[make_seeds([(900, 0, 0)], [True])])
    only = SeedNetworks([BrightAgent(2)], [BrightClicks(2)])
    with pytest.raises(InputError, match="no agent for a volume; train with --axes 3"):
        inferer()(image[None], only)


def test_an_empty_mask_is_no_answer():
    class Nothing(BrightAgent):
        """Calls every cell background."""

        def forward(self, image):
            output = super().forward(image)
            output[:, : self.actions] = torch.arange(self.actions).float()
            output[:, self.actions - 1] = -1.0
            return output

    image, _ = bright_image()
    network = SeedNetworks([Nothing(3)], [BrightClicks(3, believes=False)])
    background = make_seeds([ras(image, 12, 10, 9)], [False])
    try:
        result = inferer(keep="last")(image[None], network, seeds=[background])[0]
    except InputError as error:
        assert "no object was found" in str(error)  # noqa: PT017
    else:
        assert result.mask.any()
        assert result.mask[0][12, 10, 9] == 0


def test_one_module_holds_all_networks():
    network = bright_networks()
    assert network(torch.zeros(2, 6, 12, 12)).shape == (2, 2 * 36 + 2 + 144)
    assert network(torch.zeros(2, 7, 12, 12, 12)).shape == (2, 1, 12, 12, 12)
    network.agents["2"].weight = network.agents["3"].weight  # as parts of a U-Net that occur under two names
    weights = compact_weights(network)
    assert list(weights) == ["agents.2.weight", "agents.3.weight"]
    assert weights["agents.2.weight"].dtype == torch.float16
    assert weights["agents.2.weight"] is weights["agents.3.weight"]


LARGE = """
import resource, time, torch
import numpy as np
from bright import bright_networks, ras
from monai.data import MetaTensor
from medrl.data.seeds import make_seeds
from medrl.inference.seeding import SeedingInferer
voxels = torch.randint(-50, 50, (512, 512, 300), dtype=torch.int16)
voxels[:, :, :20] = -1000
voxels[240:280, 250:290, 140:165] += 200
image = MetaTensor(voxels[None], affine=torch.diag(torch.tensor([0.8, 0.8, 1.5, 1.0]).double()))
clicks = make_seeds([ras(image, 260, 270, 150), ras(image, 300, 270, 150)], [True, False])
start = time.perf_counter()
mask = SeedingInferer()(image[None], bright_networks(), seeds=[clicks])[0].mask[0]
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
      float(mask[240:280, 250:290, 140:165].float().mean()), int(mask.sum()) / 40000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_volume():
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", LARGE],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    _, gigabytes, inside, size = map(float, done.stdout.split())
    assert gigabytes < 1.5
    assert inside > 0.9
    assert 0.9 < size < 1.1
