"""Segmenters behind one call: the same object, found by all; what each does with seeds, priors and bad input."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import Tensor, nn

from medrl.geometry.overlap import iou
from medrl.geometry.random_walker import edge_weights, walk
from medrl.geometry.segmenters import (
    ClickNetwork,
    GeodesicDistance,
    GraphCut,
    PriorWalker,
    RandomWalker,
    Segmenter,
    click_maps,
)
from medrl.types import InputError


class Threshold(nn.Module):
    """A network whose logit is the grey value above a half, and that counts on sides of multiples of 8."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs, self.seen = outputs, []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        assert all(n % 8 == 0 for n in inputs.shape[2:])
        logit = 20 * (inputs[:, :1] - 0.5)
        if self.outputs == 1:
            return logit
        return torch.cat([logit, *[20 * (inputs[:, :1] - 0.5)] * (self.outputs - 1)], 1)


class TwoClasses(Threshold):
    """Background and foreground, to be compared by a softmax."""

    def forward(self, inputs: Tensor) -> list[Tensor]:
        logit = super().forward(inputs)
        return [torch.cat([-logit / 2, logit / 2], 1), logit]


def scene(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Two noisy images of a bright box, a seed inside and one outside, and the true masks."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.zeros(2, *shape, dtype=torch.bool)
    truth[(0, *(slice(n // 4, n // 2) for n in shape))] = True
    truth[(1, *(slice(n // 3, n - 2) for n in shape))] = True
    image = (0.2 + 0.6 * truth + 0.03 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    seeds = torch.zeros(2, *shape, dtype=torch.int8)
    seeds[(slice(None), *(n // 3 + 1 for n in shape))] = 1
    seeds.flatten(1)[:, 0] = 2
    return image, seeds, truth


def every() -> list[Segmenter]:
    return [
        RandomWalker(),
        GeodesicDistance(contrast=300.0),
        GraphCut(floor=1e-4),
        PriorWalker(Threshold(), multiple=8),
        PriorWalker(Threshold(3), prior_weight=0.0, multiple=8),
        ClickNetwork(Threshold(), multiple=8),
        ClickNetwork(TwoClasses(), multiple=8),
    ]


@pytest.mark.parametrize("shape", [(22, 27), (12, 10, 15)])
@pytest.mark.parametrize("index", range(7))
def test_each_finds_the_object(shape, index):
    segmenter = every()[index]
    if isinstance(segmenter, GraphCut):
        pytest.importorskip("maxflow")
    image, seeds, truth = scene(shape)
    potential = segmenter(image, seeds, spacing_mm=(1.0,) * (len(shape) - 1) + (1.5,))
    assert potential.shape == seeds.shape
    assert potential.dtype == torch.float32
    assert iou(potential > 0.5, truth).min() > 0.97
    bytes_ = segmenter((image * 255).round().to(torch.uint8), seeds)
    assert iou(bytes_ > 0.5, truth).min() > 0.97
    wrong = seeds.clone()
    wrong[(slice(None), *(n // 3 + 1 for n in shape))] = 2
    wrong.flatten(1)[:, 0] = 1
    held = segmenter(image, wrong)
    assert held[wrong == 2].max() == 0  # whatever image and network say, a seed has its label
    assert held[wrong == 1].min() == 1


@pytest.mark.parametrize("index", range(3))
def test_one_label_or_none(index):
    segmenter = every()[index]
    if isinstance(segmenter, GraphCut):
        pytest.importorskip("maxflow")
    image, seeds, _ = scene((12, 14))
    for label, value in ((1, 1.0), (2, 0.0), (0, 0.5)):
        potential = segmenter(image, torch.where(seeds == label, seeds, 0))
        assert potential.unique().tolist() == pytest.approx([value], abs=1e-6)


@pytest.mark.parametrize("index", [0, 1, 2, 5])
def test_a_prior_decides_where_seeds_say_nothing(index):
    segmenter = every()[index]
    if isinstance(segmenter, GraphCut):
        pytest.importorskip("maxflow")
    _, seeds, truth = scene((24, 28))
    if isinstance(segmenter, RandomWalker | GraphCut):
        segmenter.prior_weight = 1.0
    flat = torch.full(truth.shape, 0.5)
    potential = segmenter(flat, torch.zeros_like(seeds), prior=0.02 + 0.96 * truth.flip(1))
    assert iou(potential > 0.5, truth.flip(1)).min() > 0.9  # smoothing takes the corners away, at most


def test_a_start_is_handed_on():
    image, seeds, _ = scene((22, 27))
    segmenter = RandomWalker()
    potential = segmenter(image, seeds)
    assert (segmenter(image, seeds, start=potential) - potential).abs().max() < 1e-3
    assert torch.allclose(potential, walk(edge_weights(image), seeds), atol=1e-5)


def test_geodesic_distance_by_hand():
    image = torch.tensor([[[0.0, 0.0, 0.1, 0.1, 0.1]]])
    seeds = torch.tensor([[[1, 0, 0, 0, 2]]], dtype=torch.int8)
    potential = GeodesicDistance(contrast=10.0)(image, seeds)
    # steps 1, 2, 1, 1: foreground at 0 1 3 4 5, background at 5 4 2 1 0
    assert potential[0, 0].tolist() == pytest.approx([1, 4 / 5, 2 / 5, 1 / 5, 0])
    long = GeodesicDistance(contrast=10.0)(image.mT, seeds.mT, spacing_mm=(3.0, 1.0))
    # steps 3, 4, 3, 3: foreground at 0 3 7 10 13
    assert long[0, :, 0].tolist() == pytest.approx([1, 10 / 13, 6 / 13, 3 / 13, 0])


def test_geodesic_paths_go_round_walls():
    image = torch.zeros(1, 9, 9)
    image[0, :8, 4] = 1.0  # a wall with a gap below
    seeds = torch.zeros(1, 9, 9, dtype=torch.int8)
    seeds[0, 0, 3], seeds[0, 0, 8] = 1, 2
    potential = GeodesicDistance(contrast=100.0)(image, seeds)
    assert potential[0, 0, 5] == pytest.approx(3 / (18 + 3))  # 18 steps round the wall, 3 from the other seed
    assert (potential[0, :, :4] > 0.5).all()


def test_graph_cut_by_hand():
    pytest.importorskip("maxflow")
    image = torch.tensor([[[0.5, 0.52, 0.6, 0.8, 0.81]]])
    seeds = torch.tensor([[[1, 0, 0, 0, 2]]], dtype=torch.int8)
    assert GraphCut()(image, seeds)[0, 0].tolist() == [1, 1, 1, 0, 0]  # the weakest edge is that of 0.2
    prior = torch.tensor([[[0.5, 0.01, 0.01, 0.01, 0.5]]])
    assert GraphCut(prior_weight=10.0)(image, seeds, prior=prior)[0, 0].tolist() == [1, 0, 0, 0, 0]


def test_graph_cut_says_what_to_install(monkeypatch):
    load = builtins.__import__

    def refuse(name, *rest, **named):
        if name == "maxflow":
            raise ImportError(name)
        return load(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    image, seeds, _ = scene((8, 8))
    with pytest.raises(InputError, match="pip install PyMaxflow"):
        GraphCut()(image, seeds)


def test_click_maps_are_gaussians():
    seeds = torch.zeros(2, 21, 31, dtype=torch.int8)
    seeds[0, 10, 15], seeds[0, 2, 3], seeds[1, 0, 30] = 1, 2, 2
    maps = click_maps(seeds, sigma=2.0)
    assert maps.shape == (2, 2, 21, 31)
    assert maps[0, 0, 10, 15] == pytest.approx(1.0)
    assert maps[0, 0, 10, 17].item() == pytest.approx(2.718281828**-0.5, abs=1e-4)
    assert maps[0, 0, 12, 17].item() == pytest.approx(2.718281828**-1, abs=1e-4)
    assert maps[1, 0].abs().max() == 0
    assert maps[1, 1].argmax() == 30


def test_click_network_sees_image_and_clicks():
    network = Threshold()
    image, seeds, _ = scene((22, 27))
    ClickNetwork(network, sigma=1.0, multiple=8)(image, seeds)
    inputs = network.seen[0]
    assert inputs.shape == (2, 3, 24, 32)
    assert torch.equal(inputs[:, 0, :22, :27], image)
    assert torch.equal(inputs[:, 1:, :22, :27], click_maps(seeds, sigma=1.0))
    assert inputs[:, :, 22:].abs().max() == 0


def test_a_monai_network_fits():
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    network = nets.BasicUNet(spatial_dims=2, in_channels=3, out_channels=2, features=(4, 4, 4, 4, 4, 4)).eval()
    image, seeds, _ = scene((22, 27))
    potential = ClickNetwork(network)(image, seeds)
    assert potential.shape == seeds.shape
    assert 0 <= potential.min() < potential.max() <= 1


def test_prior_walker_uses_prior_and_learned_edges():
    image, seeds, _ = scene((22, 27))
    prior = torch.sigmoid(20 * (image - 0.5))
    expected = walk(edge_weights(image), seeds, prior=prior, prior_weight=0.3)
    assert torch.allclose(PriorWalker(Threshold(), multiple=8)(image, seeds), expected, atol=1e-5)
    like = torch.stack([prior, prior], 1)
    expected = walk(edge_weights(like, channels=True), seeds)
    learned = PriorWalker(Threshold(3), prior_weight=0.0, multiple=8)(image, seeds)
    assert torch.allclose(learned, expected, atol=1e-5)
    network = Threshold()
    PriorWalker(network, click_sigma=1.0, multiple=8)(image, seeds)
    assert network.seen[0].shape[1] == 3


def test_shapes_that_do_not_fit_are_refused():
    image, seeds, _ = scene((12, 14))
    with pytest.raises(InputError, match="one shape"):
        RandomWalker()(image, seeds[:1])
    with pytest.raises(InputError, match="one shape"):
        GeodesicDistance()(image, seeds, prior=image[:, :5])
    with pytest.raises(InputError, match="3 spacings for an image of 2 axes"):
        RandomWalker()(image, seeds, spacing_mm=(1, 1, 1))
    image[0, 3, 3] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        RandomWalker()(image, seeds)


@pytest.mark.parametrize("index", range(3))
def test_a_constant_image_gives_a_mask(index):
    segmenter = every()[index]
    if isinstance(segmenter, GraphCut):
        pytest.importorskip("maxflow")
    _, seeds, _ = scene((12, 14))
    potential = segmenter(torch.full(seeds.shape, 0.4), seeds)
    assert potential.isfinite().all()
    assert (potential[seeds == 1] == 1).all()
