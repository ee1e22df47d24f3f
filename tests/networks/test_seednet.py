"""The seeding network: parts, any size, mirrored training."""

from __future__ import annotations

import pytest
import torch

from medrl.networks.seednet import SeedNet, _fold, _unfold


@pytest.mark.parametrize(("shape", "grid"), [((21, 18), (5, 4)), ((9, 8, 10), (3, 2, 3))])
def test_parts_and_sizes(shape, grid):
    torch.manual_seed(0)
    network = SeedNet(dims=len(shape), grid=grid, width=4).eval()
    image = torch.randint(256, (3, 6, *shape), dtype=torch.uint8)
    with torch.no_grad():
        output = network(image)
        heads = network.split(output)
        alone = network(image[1:2])
    cells, voxels = torch.tensor(grid).prod(), torch.tensor(shape).prod()
    assert heads.q.shape == (3, 1, 1, 2 * cells + 1)
    assert heads.mask_logits.shape == (3, voxels)
    assert heads.quality.shape == (3,)
    assert torch.equal(network.action_values(output), heads.q[:, :, 0])
    torch.testing.assert_close(alone[0], output[1], atol=1e-5, rtol=1e-4)
    bigger = torch.randint(256, (1, 6, *(2 * n for n in shape)), dtype=torch.uint8)
    assert network.split(network(bigger)).q.shape == (1, 1, 1, 2 * cells + 1)


@pytest.mark.parametrize("shape", [(7, 10), (5, 8, 7)])
def test_folding_loses_nothing(shape):
    image = torch.rand(2, 1, *shape)
    assert torch.equal(_unfold(_fold(image), shape), image[:, 0])


def test_mirrored_batches_answer_in_the_images_own_frame():
    torch.manual_seed(0)
    network = SeedNet(grid=(4, 4), width=4).train()
    for module in network.modules():  # so that a pass does not depend on the others
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats, module.momentum = True, 0.0
    torch.nn.init.normal_(network.value_head["advantage"].weight)
    image = torch.zeros(2, 6, 16, 16, dtype=torch.uint8)
    image[:, :, :4, 4:8] = 200  # one corner region differs, and must do so in every pass
    image[:, 0] = 0  # the gamma is no part of this
    answers = [network(image) for _ in range(12)]
    logits = torch.stack([network.split(answer).mask_logits.detach().reshape(2, 16, 16)[0] for answer in answers])
    spread = (logits - logits.mean((1, 2), keepdim=True)).abs()
    inside = spread[:, :6, 2:10].mean((1, 2))
    outside = spread[:, 10:, :].mean((1, 2))
    assert (inside > outside).all()


def test_a_grid_must_fit_the_axes():
    with pytest.raises(ValueError, match="axes"):
        SeedNet(dims=3, grid=(20, 20))
