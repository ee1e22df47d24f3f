"""The click network's probability on lattices of any size, with and without clicks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medrl.data.clicks import click_input, stack_clicks
from medrl.inference.click_network import ClickPrior, fill_up
from medrl.networks.click_network import ClickNet
from medrl.types import InputError

SETTINGS = {"dims": 2, "channels": (4, 6, 8)}
CLICKS = stack_clicks([[(40, 1), (200, 2)], [(7, 1)], []])


def small_prior(**options):
    torch.manual_seed(0)
    return ClickPrior(ClickNet(**SETTINGS), **options)


def images(generator, shape=(3, 19, 14)):
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


class NearClick(nn.Module):
    """Says object where the foreground map is higher than the background map."""

    multiple = 4

    def forward(self, image):
        return 5 * (image[:, 1:2] - image[:, 4:5] - 0.05)


def test_the_answer_is_on_the_lattice_of_the_image():
    prior = ClickPrior(NearClick())
    probability = prior(torch.full((3, 19, 14), 90, dtype=torch.uint8), CLICKS)
    assert probability.shape == (3, 19, 14)
    assert probability.dtype == torch.float32
    assert probability.flatten(1).argmax(1).tolist()[:2] == [40, 7]
    assert int(probability[0].argmin()) == 200
    assert float(probability[2].max()) < 0.5


@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 19, 14)), (3, (2, 9, 13, 10))])
def test_rows_are_answered_one_by_one(dims, shape, torch_generator):
    torch.manual_seed(0)
    prior = ClickPrior(ClickNet(dims=dims, channels=(4, 6, 8)))
    image = images(torch_generator, shape)
    rows = [[(30, 1), (100, 2)], [(60, 2)]]
    together = prior(image, stack_clicks(rows))
    for n, row in enumerate(rows):
        torch.testing.assert_close(prior(image[n : n + 1], stack_clicks([row]))[0], together[n], atol=1e-5, rtol=0)
    assert together.isfinite().all()
    assert float(together.std()) > 0


def test_a_mean_over_mirrored_copies_is_mirrored_with_the_image(torch_generator):
    prior = small_prior(mirrors=(0,))
    image = images(torch_generator, (1, 16, 16))
    clicks = stack_clicks([[(3 * 16 + 5, 1), (12 * 16 + 9, 2)]])
    mirrored = stack_clicks([[(12 * 16 + 5, 1), (3 * 16 + 9, 2)]])
    torch.testing.assert_close(prior(image.flip(1), mirrored), prior(image, clicks).flip(1), atol=1e-5, rtol=0)
    assert not torch.allclose(small_prior()(image.flip(1), mirrored), small_prior()(image, clicks).flip(1), atol=1e-3)


def test_filling_up_looks_like_outside_the_image():
    clicks = stack_clicks([[(0, 1), (5, 2)]])
    filled = fill_up(click_input(torch.full((1, 5, 6), 200, dtype=torch.uint8), clicks), 4)
    assert filled.shape == (1, 7, 8, 8)
    outside = click_input(torch.zeros((1, 8, 8), dtype=torch.uint8), stack_clicks([[]]))
    assert torch.equal(filled[..., 5:, :], outside[..., 5:, :])
    assert torch.equal(filled[..., 6:], outside[..., 6:])


def test_weights_are_kept_in_half_precision(tmp_path, torch_generator):
    prior = small_prior(near=3.0)
    prior.save(tmp_path / "clicks.pt", SETTINGS)
    image = images(torch_generator)
    again = ClickPrior.load(tmp_path / "clicks.pt")
    assert again.near == 3.0
    torch.testing.assert_close(again(image, CLICKS), prior(image, CLICKS), atol=5e-3, rtol=0)
    assert ClickPrior.load(tmp_path / "clicks.pt", mirrors=[0]).mirrors == (0,)
    size = sum(value.numel() for value in prior.network.parameters())
    assert (tmp_path / "clicks.pt").stat().st_size < 2.5 * size + 30_000


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(InputError, match=r"^text\.pt: not a click network") as raised:
        ClickPrior.load(tmp_path / "text.pt")
    assert "\n" not in str(raised.value)
