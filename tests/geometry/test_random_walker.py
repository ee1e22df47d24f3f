"""The random walker against scikit-image, against dense algebra, and by hand."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from medrl.geometry import random_walker
from medrl.geometry.lattice import Laplacian, degree, dense
from medrl.geometry.multigrid import Multigrid
from medrl.geometry.random_walker import combine, edge_weights, eliminate, responses, walk

SHAPES = [((24, 31), (1.0, 1.0)), ((19, 33), (0.7, 2.0)), ((12, 9, 14), (1.0, 0.8, 2.5)), ((1, 40), (1.0, 1.0))]


def systems(shape: tuple[int, ...], rows: int = 3, noise: float = 0.12) -> tuple[Tensor, Tensor]:
    """Noisy images with a bright box, and two or three seeds a row."""
    generator = torch.Generator().manual_seed(len(shape) + shape[0])
    image = torch.rand(rows, *shape, generator=generator) * noise
    box = tuple(slice(n // 4, n // 2 + 2) for n in shape)
    image[(slice(None), *box)] += 0.6
    seeds = torch.zeros(rows, *shape, dtype=torch.int8)
    seeds[(slice(None), *(n // 3 for n in shape))] = 1
    seeds.flatten(1)[:, 3] = 2
    seeds.flatten(1)[1:2, -2] = 2
    return image, seeds


@pytest.fixture
def eliminated(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Seeds of the rows that walk hands over to elimination."""
    rows: list[Tensor] = []

    def spy(weights: list[Tensor], seeds: Tensor, *rest: object) -> Tensor:
        rows.append(seeds)
        return eliminate(weights, seeds, *rest)

    monkeypatch.setattr(random_walker, "eliminate", spy)
    return rows


def exact(weights: tuple[Tensor, ...], seeds: Tensor, gamma: float = 0.0, prior: Tensor | None = None) -> Tensor:
    """Potentials by dense elimination in float64."""
    weights = tuple(weight.double() for weight in weights)
    matrix = dense(weights, degree(weights) + gamma)
    out = []
    for row, labels in enumerate(seeds.flatten(1)):
        free, u = labels == 0, (labels == 1).double()
        right = -matrix[row][free][:, ~free] @ u[~free]
        if prior is not None:
            right += gamma * prior[row].flatten().double()[free]
        u[free] = torch.linalg.solve(matrix[row][free][:, free], right)
        out.append(u)
    return torch.stack(out).reshape(seeds.shape)


@pytest.mark.parametrize(("shape", "spacing_mm"), SHAPES[:3])
def test_equal_to_scikit_image(shape, spacing_mm):
    segmentation = pytest.importorskip("skimage.segmentation")
    image, seeds = systems(shape)
    potential = walk(edge_weights(image, spacing_mm=spacing_mm, floor=1e-10), seeds)
    for row in range(3):
        theirs = segmentation.random_walker(
            image[row].double().numpy(), seeds[row].numpy(), mode="bf", spacing=spacing_mm, return_full_prob=True
        )[0]
        assert (potential[row] - torch.from_numpy(theirs)).abs().max() < 1e-3


def boxes(dims: int) -> tuple[Tensor, Tensor]:
    """The images of scikit-image's tests: a hollow box in noise, one seed in its wall, one inside."""
    generator = torch.Generator().manual_seed(0)
    shape = (70, 100) if dims == 2 else (20, 20, 20)
    low, high = (20, 50) if dims == 2 else (4, 15)
    image = 0.1 * torch.randn(shape, generator=generator)
    outer, inner = (slice(low, high),) * dims, (slice(low + 2, high - 2),) * dims
    image[outer] = 1.0
    image[inner] = 0.0
    image[(slice((low + high) // 2, (low + high) // 2 + 2), *(slice(low, high),) * (dims - 1))] = 0.5
    seeds = torch.zeros(shape, dtype=torch.int8)
    seeds[(low + 3,) * dims] = 2
    seeds[(1,) * dims] = 1
    return image[None], seeds[None]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("beta", [90.0, 130.0])
def test_equal_to_scikit_image_on_its_boxes(dims, beta):
    segmentation = pytest.importorskip("skimage.segmentation")
    image, seeds = boxes(dims)
    potential = walk(edge_weights(image, beta=beta, floor=1e-10), seeds)[0]
    theirs = segmentation.random_walker(
        image[0].double().numpy(), seeds[0].numpy(), beta=beta, mode="bf", return_full_prob=True
    )[0]
    assert (potential - torch.from_numpy(theirs)).abs().max() < 1e-3


def test_channels_equal_scikit_image():
    segmentation = pytest.importorskip("skimage.segmentation")
    first, seeds = systems((24, 31))
    image = torch.stack([first, first.flip(0) * 0.5, first**2], 1)
    potential = walk(edge_weights(image, floor=1e-10, channels=True), seeds)
    for row in range(3):
        theirs = segmentation.random_walker(
            image[row].double().numpy(), seeds[row].numpy(), mode="bf", channel_axis=0, return_full_prob=True
        )[0]
        assert (potential[row] - torch.from_numpy(theirs)).abs().max() < 1e-3


def test_edge_weights_by_hand():
    image = torch.tensor([[[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]])
    down, across = edge_weights(image, beta=2.0, spacing_mm=(1.0, 0.5), floor=1e-3)
    scale = 2.0 / 10 / image.std(correction=0).item()
    assert down[0, 0].tolist() == pytest.approx([1.001, math.exp(-scale * 0.25) + 1e-3, math.exp(-scale * 0.25) + 1e-3])
    assert across[0, 0].tolist() == pytest.approx([math.exp(-scale) + 1e-3, 1.001])
    bytes_ = (image * 200).to(torch.uint8)
    assert edge_weights(bytes_)[0].tolist() == edge_weights(bytes_.float() / 255)[0].tolist()
    assert edge_weights(torch.full((1, 3, 3), 7.0))[0].unique().tolist() == pytest.approx([1.0], abs=1e-5)
    with pytest.raises(ValueError, match="3 values for 2 axes"):
        edge_weights(image, spacing_mm=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(("shape", "spacing_mm"), SHAPES)
@pytest.mark.parametrize("gamma", [0.0, 0.05])
def test_equal_to_dense_algebra(shape, spacing_mm, gamma, eliminated):
    image, seeds = systems(shape)
    weights = edge_weights(image, spacing_mm=spacing_mm)
    prior = image.clamp(0, 1) if gamma else None
    expected = exact(weights, seeds, gamma, prior)
    potential = walk(weights, seeds, prior=prior, prior_weight=gamma)
    assert potential.dtype == torch.float32
    assert (potential - expected).abs().max() < 1e-3
    assert not eliminated or shape[0] == 1  # on a line, two weak edges are many
    columns = torch.stack([responses([w[row] for w in weights], torch.arange(seeds[0].numel()), prior_weight=gamma)
                           for row in range(3)])  # fmt: skip
    nodes = seeds.flatten(1).argsort(descending=True)[:, :4]  # background, foreground, and what is no seed
    picked = columns.gather(1, nodes[..., None].expand(-1, -1, columns.shape[2]))
    offset = exact(weights, torch.zeros_like(seeds), gamma, prior).flatten(1) if gamma else None
    combined = combine(picked, nodes, seeds.flatten(1).gather(1, nodes), offset=offset)
    assert (combined.reshape(expected.shape) - expected).abs().max() < 2e-5


def test_a_line_of_equal_edges_falls_evenly():
    seeds = torch.zeros(1, 1, 11, dtype=torch.int8)
    seeds[0, 0, 0], seeds[0, 0, 10] = 1, 2
    potential = walk(edge_weights(torch.zeros(1, 1, 11)), seeds)
    assert potential[0, 0].tolist() == pytest.approx([1 - n / 10 for n in range(11)], abs=1e-4)


def test_regions_behind_weak_edges():
    """Each island finds its label although edges of 1e-6 lead there: lines of one node, as a padded margin is."""
    image = torch.zeros(1, 40, 40)
    image[:, :, 39] = 1.0  # the last column, without a seed of its own
    image[:, 7] = 0.5  # an odd row
    image[:, 20:30, 11:13] = 1.0
    seeds = torch.zeros(1, 40, 40, dtype=torch.int8)
    seeds[0, 3, 3], seeds[0, 30, 30], seeds[0, 22, 11] = 1, 2, 1
    weights = edge_weights(image, beta=1e4)
    potential = walk(weights, seeds, tolerance=1e-4)
    assert (potential - exact(weights, seeds)).abs().max() < 1e-3
    assert potential[0, 2, :39].min() > 0.99
    assert potential[0, 25, 11] > 0.99
    assert potential[0, 35, 35] < 0.01
    assert 0.01 < potential[0, 5, 39] < 0.99


def test_noise_is_eliminated_and_too_much_of_it_taken_with_caution(eliminated, monkeypatch):
    image, seeds = systems((24, 31), noise=0.9)
    calm, _ = systems((24, 31))
    image[1] = calm[1]
    weights = edge_weights(image)
    expected = exact(weights, seeds)
    assert (walk(weights, seeds) - expected).abs().max() < 1e-4
    assert len(eliminated) == 2
    assert torch.equal(eliminated[1], seeds[2])
    monkeypatch.setattr(random_walker, "ELIMINATION", 0.0)
    assert (walk(weights, seeds, max_iterations=3000) - expected).abs().max() < 1e-2
    assert len(eliminated) == 2


def test_slow_rows_are_eliminated(eliminated, monkeypatch):
    image, seeds = systems((24, 31))
    weights = edge_weights(image)
    monkeypatch.setattr(random_walker, "PATIENCE", 1)
    prior = image.clamp(0, 1).flip(1)
    potential = walk(weights, seeds, prior=prior, prior_weight=0.02)
    assert len(eliminated) == 3
    assert (potential - exact(weights, seeds, 0.02, prior)).abs().max() < 1e-4


@pytest.mark.parametrize("solve", ["walk", "combine"])
def test_rows_with_one_label_or_none(solve):
    image, _ = systems((9, 10))
    seeds = torch.zeros(3, 9, 10, dtype=torch.int8)
    seeds[0, 4, 4], seeds[1, 4, 4] = 1, 2
    weights = edge_weights(image)
    if solve == "walk":
        potential = walk(weights, seeds)
    else:
        nodes = torch.full((3, 2), 44)  # the second of the two is no seed
        columns = torch.stack([responses([w[row] for w in weights], nodes[row]) for row in range(3)])
        potential = combine(columns, nodes, torch.tensor([[1, 0], [2, 0], [0, 0]])).reshape(3, 9, 10)
    for row, value in enumerate((1.0, 0.0, 0.5)):
        assert potential[row].unique().tolist() == pytest.approx([value], abs=1e-6)


def test_without_seeds_a_prior_is_smoothed_and_keeps_its_sum():
    image, seeds = systems((12, 15))
    prior = (image > 0.5).float()
    potential = walk(edge_weights(image), torch.zeros_like(seeds), prior=prior, prior_weight=0.1, tolerance=1e-4)
    assert potential.flatten(1).mean(1).tolist() == pytest.approx(prior.flatten(1).mean(1).tolist(), abs=1e-4)
    assert potential.std() < prior.std()


def test_of_two_seeds_on_one_node_the_last_counts():
    image, _ = systems((9, 10), rows=1)
    columns = responses(edge_weights(image), torch.tensor([3, 45, 3]))[None]
    nodes, labels = torch.tensor([[3, 45, 3]]), torch.tensor([[1, 2, 2]])
    assert combine(columns, nodes, labels).max() < 1e-6
    again = combine(columns, nodes, torch.tensor([[2, 2, 1]]))
    assert again[0, 3] == pytest.approx(1.0, abs=1e-5)


def test_responses_are_the_pseudo_inverse():
    image, _ = systems((5, 9, 6), rows=1)  # the longest axis is not the first
    weights = edge_weights(image)
    wide = tuple(w.double() for w in weights)
    expected = torch.linalg.pinv(dense(wide, degree(wide))[0], hermitian=True)
    nodes = torch.tensor([17, 3, 200, 3])
    columns = responses(weights, nodes)
    assert columns.dtype == torch.float32
    assert torch.allclose(columns, expected[nodes].float(), rtol=1e-3, atol=1e-4)
    assert columns.sum(1).abs().max() < 1e-2
    loaded = torch.linalg.inv(dense(wide, degree(wide) + 0.2)[0])
    assert torch.allclose(responses(weights, nodes, prior_weight=0.2), loaded[nodes].float(), rtol=1e-4)


def test_a_row_does_not_depend_on_its_batch():
    image, seeds = systems((24, 31))
    weights = edge_weights(image)
    together = walk(weights, seeds)
    for row in range(3):
        alone = walk([w[row : row + 1] for w in weights], seeds[row : row + 1])
        assert (alone[0] - together[row]).abs().max() < 1e-3
    shared = walk([w[:1] for w in weights], seeds)  # one image, three sets of seeds
    assert (shared[0] - together[0]).abs().max() < 1e-3
    assert (shared[1] - exact([w[:1].expand(3, *w.shape[1:]) for w in weights], seeds)[1]).abs().max() < 1e-3


def test_a_good_start_saves_iterations(monkeypatch):
    image, seeds = systems((40, 40))
    weights, calls = edge_weights(image), []
    apply = Multigrid.apply
    monkeypatch.setattr(Multigrid, "apply", lambda self: (calls.append(1), apply(self))[1])
    first = walk(weights, seeds)
    cold = len(calls)
    second = walk(weights, seeds, start=first)
    assert len(calls) - cold < cold / 2
    assert (first - second).abs().max() < 1e-3
    assert torch.equal(first * (seeds > 0), (seeds == 1).float())


def test_an_unreached_tolerance_is_said(caplog):
    image, seeds = systems((40, 40))
    with caplog.at_level(logging.WARNING):
        walk(edge_weights(image), seeds, max_iterations=1)
    assert "3 rows of 3 did not reach the tolerance" in caplog.text
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        walk(edge_weights(image), seeds, max_iterations=1, tolerance=0)
    assert caplog.text == ""


def test_seeds_of_another_shape_are_refused():
    image, seeds = systems((9, 10))
    with pytest.raises(ValueError, match="do not fit seeds"):
        walk(edge_weights(image), seeds.mT)


def test_strided_input_is_taken():
    image, seeds = systems((12, 17))
    weights = edge_weights(image)
    turned = walk([weights[1].mT, weights[0].mT], seeds.mT, start=torch.zeros_like(image).mT)
    assert (turned.mT - walk(weights, seeds)).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(17, 20), (9, 10, 7), (70, 1)])
def test_operators_are_symmetric(shape):
    """The Laplacian is the dense one; the preconditioner is symmetric, positive, and near to the inverse."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, *shape, generator=generator)
    weights = [w.double() for w in edge_weights(image)]
    extra = torch.full((2, *shape), 0.01, dtype=torch.float64)
    u = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    expected = (dense(weights, degree(weights)) @ u.flatten(1)[..., None]).reshape(u.shape) + 0.01 * u
    assert torch.allclose(Laplacian(weights, shift=0.01)(u), expected, atol=1e-10)
    multigrid, columns = Multigrid(weights, extra), []
    for node in range(u[0].numel()):
        multigrid.residual.zero_().flatten(1)[:, node] = 1.0
        columns.append(multigrid.apply().flatten(1).clone())
    matrix = torch.stack(columns, 2)
    assert torch.allclose(matrix, matrix.mT, atol=1e-9)
    system = dense(weights, degree(weights) + extra)
    values = torch.linalg.eigvals(matrix @ system).real
    assert values.min() > 1e-3
    assert values.max() < 30  # without it, from 1e-6 / 8 to 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(84, 84), (48, 48, 48)])
def test_cuda_gives_the_cpus_potentials(shape):
    image, seeds = systems(shape)
    weights = edge_weights(image)
    fast = walk([w.cuda() for w in weights], seeds.cuda())
    assert (fast.cpu() - walk(weights, seeds)).abs().max() < 1e-3
    torch.cuda.set_sync_debug_mode("error")
    try:
        walk([w.cuda() for w in weights], fast.new_zeros(fast.shape, dtype=torch.int8), tolerance=0, max_iterations=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
