"""Interactive segmenters behind one call: seeds in, probability of foreground out.

All take images (B, *S), uint8 or float in about [0, 1], seeds (B, *S) int8 (0 none, 1 foreground, 2 background), and
return potentials (B, *S) float32; the mask is ``potential > 0.5``.  Seeds keep their label.  Without a prior or a
network, a row with one label only becomes that label everywhere, and a row without seeds 0.5, which is no mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from medrl.geometry.random_walker import BACKGROUND, FOREGROUND, edge_weights, walk
from medrl.types import InputError


class Segmenter(ABC):
    """The call that all segmenters share; each defines ``segment``."""

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        seeds: Tensor,
        *,
        prior: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Potential (B, *S) of foreground.

        ``prior`` (B, *S) is a probability of foreground, ``spacing_mm`` one length an axis, ``start`` the potential
        before the last seed, from which an iterative solver begins.  Raises InputError where shapes do not fit
        or the image is not finite.
        """
        if image.shape != seeds.shape or (prior is not None and prior.shape != seeds.shape):
            shapes = [tuple(values.shape) for values in (image, seeds, prior) if values is not None]
            raise InputError(f"image, seeds and prior have the shapes {shapes}: one shape (B, *S) expected")
        spacing_mm = [1.0] * (image.ndim - 1) if spacing_mm is None else [float(mm) for mm in spacing_mm]
        if len(spacing_mm) != image.ndim - 1:
            raise InputError(f"{len(spacing_mm)} spacings for an image of {image.ndim - 1} axes: one an axis expected")
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        if not bool(image.isfinite().all()):
            raise InputError("the image has values that are not finite: replace them first")
        potential = self.segment(image, seeds, prior, spacing_mm, start)
        return torch.where(seeds == 0, potential, (seeds == FOREGROUND).to(potential))

    @abstractmethod
    def segment(
        self, image: Tensor, seeds: Tensor, prior: Tensor | None, spacing_mm: Sequence[float], start: Tensor | None
    ) -> Tensor:
        """The potential, from a float image; the caller sets the seeds themselves."""


class RandomWalker(Segmenter):
    """Grady's random walker; a ``prior`` counts with ``prior_weight``, where an edge between equals counts 1."""

    def __init__(
        self, *, beta: float = 130.0, floor: float = 1e-6, prior_weight: float = 0.05, tolerance: float = 1e-3
    ) -> None:
        self.beta, self.floor, self.prior_weight, self.tolerance = beta, floor, prior_weight, tolerance

    def segment(
        self, image: Tensor, seeds: Tensor, prior: Tensor | None, spacing_mm: Sequence[float], start: Tensor | None
    ) -> Tensor:
        weights = edge_weights(image, beta=self.beta, spacing_mm=spacing_mm, floor=self.floor)
        weight = self.prior_weight
        return walk(weights, seeds, prior=prior, prior_weight=weight, start=start, tolerance=self.tolerance)


class PriorWalker(Segmenter):
    """The random walker with what a network says of the image: a prior, learned edges, or both.

    ``network`` maps the image (B, 1, *S), with ``click_sigma`` the image and two click maps (B, 3, *S), to (B, C, *S):
    the logit of foreground, and in further channels, if any, features whose sigmoids take the place of the grey values
    in the edge weights, so that neighbours are joined that are alike to the network.  With ``prior_weight`` 0 only
    the edges are learned.  A ``prior`` that is given takes the place of the network's.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        *,
        prior_weight: float = 0.3,
        click_sigma: float | None = None,
        multiple: int = 16,
        beta: float = 130.0,
        floor: float = 1e-6,
        tolerance: float = 1e-3,
    ) -> None:
        self.network, self.click_sigma, self.multiple = network, click_sigma, multiple
        self.prior_weight, self.beta, self.floor, self.tolerance = prior_weight, beta, floor, tolerance

    def segment(
        self, image: Tensor, seeds: Tensor, prior: Tensor | None, spacing_mm: Sequence[float], start: Tensor | None
    ) -> Tensor:
        inputs = image[:, None]
        if self.click_sigma is not None:
            inputs = torch.cat([inputs, click_maps(seeds, sigma=self.click_sigma)], 1)
        output = run_padded(self.network, inputs, self.multiple)
        prior = output[:, 0].sigmoid() if prior is None else prior
        like = output[:, 1:].sigmoid() if output.shape[1] > 1 else image[:, None]
        weights = edge_weights(like, beta=self.beta, spacing_mm=spacing_mm, floor=self.floor, channels=True)
        weight = self.prior_weight
        return walk(weights, seeds, prior=prior, prior_weight=weight, start=start, tolerance=self.tolerance)


class ClickNetwork(Segmenter):
    """A network that takes the image and the clicks, as MONAI's DeepEdit: image, foreground map, background map.

    The maps are Gaussians of ``sigma`` voxels round the clicks, of height 1, as of ``AddGuidanceSignalDeepEditd``.  One
    channel of output is the logit of foreground; of several, a softmax gives the probability of ``channel``.  Images
    are padded to a ``multiple`` of voxels for networks that halve them.  A ``prior`` multiplies the odds.
    """

    def __init__(
        self, network: Callable[[Tensor], Any], *, sigma: float = 3.0, channel: int = 1, multiple: int = 16
    ) -> None:
        self.network, self.sigma, self.channel, self.multiple = network, sigma, channel, multiple

    def segment(
        self, image: Tensor, seeds: Tensor, prior: Tensor | None, spacing_mm: Sequence[float], start: Tensor | None
    ) -> Tensor:
        inputs = torch.cat([image[:, None], click_maps(seeds, sigma=self.sigma)], 1)
        output = run_padded(self.network, inputs, self.multiple)
        potential = output[:, 0].sigmoid() if output.shape[1] == 1 else output.softmax(1)[:, self.channel]
        return _with_prior(potential, prior)


class GeodesicDistance(Segmenter):
    """The label of the nearer seed, where a step's length is 1 in the finest spacing plus ``contrast`` a unit of grey.

    Shortest paths along the axes (Bai and Sapiro 2007), by sweeps to and fro over all rows until nothing changes.  The
    potential is the share of the background's distance in both; a ``prior`` multiplies the odds.
    """

    def __init__(self, *, contrast: float = 100.0, max_rounds: int = 100) -> None:
        self.contrast, self.max_rounds = contrast, max_rounds

    def segment(
        self, image: Tensor, seeds: Tensor, prior: Tensor | None, spacing_mm: Sequence[float], start: Tensor | None
    ) -> Tensor:
        steps = [
            (image.diff(dim=axis).abs_() * self.contrast + mm / min(spacing_mm)).repeat(2, *[1] * (image.ndim - 1))
            for axis, mm in enumerate(spacing_mm, 1)
        ]
        seeded = torch.cat([seeds == FOREGROUND, seeds == BACKGROUND])
        distance = torch.where(seeded, 0.0, torch.inf)
        for _ in range(self.max_rounds):
            before = distance.clone()
            for axis, step in enumerate(steps, 1):
                _sweep(distance, step, axis)
            if torch.equal(before, distance):
                break
        foreground, background = distance.chunk(2)
        potential = background / (foreground + background)
        potential = torch.where(background.isinf(), torch.where(foreground.isinf(), 0.5, 1.0), potential)
        return _with_prior(potential, prior)


class GraphCut(Segmenter):
    """The cheapest cut between the seeds (Boykov and Jolly 2001), through the library PyMaxflow, which is GPL.

    Edges are the random walker's; a ``prior`` adds ``prior_weight`` times its negative log to a node of that label.
    The potential is 0 or 1.  Row after row on the CPU.  Raises InputError without PyMaxflow.
    """

    def __init__(self, *, beta: float = 130.0, floor: float = 1e-6, prior_weight: float = 0.1) -> None:
        self.beta, self.floor, self.prior_weight = beta, floor, prior_weight

    def segment(
        self, image: Tensor, seeds: Tensor, prior: Tensor | None, spacing_mm: Sequence[float], start: Tensor | None
    ) -> Tensor:
        weights = edge_weights(image, beta=self.beta, spacing_mm=spacing_mm, floor=self.floor)
        endless = 2.0 * sum(float(weight.flatten(1).sum(1).amax()) for weight in weights) + 1e3
        if prior is None:
            unary = torch.zeros(2, *seeds.shape, device=seeds.device)
        else:
            unary = -self.prior_weight * torch.stack([prior, 1 - prior]).float().clamp(min=1e-6).log()
        # what it costs to call a node foreground, and background
        unary[0].masked_fill_(seeds == BACKGROUND, endless)
        unary[1].masked_fill_(seeds == FOREGROUND, endless)
        rows = [_cut([w[row] for w in weights], unary[:, row]) for row in range(len(seeds))]
        potential = torch.stack(rows).to(image)
        if prior is None:
            some = (seeds > 0).flatten(1).any(1).reshape(-1, *[1] * (seeds.ndim - 1))
            potential = torch.where(some, potential, 0.5)
        return potential


def click_maps(seeds: Tensor, *, sigma: float) -> Tensor:
    """Gaussians of height 1 round the seeds, (B, 2, *S): foreground, background; zero where a label has no seed."""
    maps = torch.stack([seeds == FOREGROUND, seeds == BACKGROUND], 1).float()
    reach = max(1, int(4 * sigma + 0.5))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=seeds.device) / sigma) ** 2)
    for axis in range(2, maps.ndim):
        lines = maps.movedim(axis, -1)
        smoothed = conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel.view(1, 1, -1), padding=reach)
        maps = smoothed.reshape(lines.shape).movedim(-1, axis)
    top = maps.flatten(2).amax(2).clamp(min=1e-12)
    return maps / top.reshape(*top.shape, *[1] * (maps.ndim - 2))


def run_padded(network: Callable[[Tensor], Any], inputs: Tensor, multiple: int) -> Tensor:
    """Output (B, C, *S) of a network for inputs (B, C', *S), padded at the far ends to a multiple of voxels."""
    shape = inputs.shape[2:]
    margins = [amount for n in reversed(shape) for amount in (0, -n % multiple)]
    output = network(pad(inputs, margins))
    output = output[0] if isinstance(output, list | tuple) else output  # deep supervision: the finest comes first
    return output[(slice(None), slice(None), *(slice(n) for n in shape))]


def _with_prior(potential: Tensor, prior: Tensor | None) -> Tensor:
    if prior is None:
        return potential
    likely = potential * prior
    return likely / (likely + (1 - potential) * (1 - prior)).clamp(min=1e-12)


def _sweep(distance: Tensor, step: Tensor, axis: int) -> None:
    """Carry distances along an axis, forwards and backwards, in place."""
    lines, gaps = distance.unbind(axis), step.unbind(axis)
    for i in range(1, len(lines)):
        torch.minimum(lines[i], lines[i - 1] + gaps[i - 1], out=lines[i])
    for i in range(len(lines) - 2, -1, -1):
        torch.minimum(lines[i], lines[i + 1] + gaps[i], out=lines[i])


def _cut(weights: Sequence[Tensor], unary: Tensor) -> Tensor:
    """Foreground (S) of the cheapest labelling of one graph with ``unary`` costs (2, S) of either label."""
    try:
        import maxflow
    except ImportError as error:
        raise InputError("a graph cut needs the library PyMaxflow: pip install PyMaxflow") from error
    import numpy as np

    graph = maxflow.GraphFloat()
    nodes = graph.add_grid_nodes(tuple(unary.shape[1:]))
    for axis, weight in enumerate(weights):
        capacity = np.zeros(nodes.shape)
        capacity[tuple(slice(n) for n in weight.shape)] = weight.double().cpu().numpy()
        structure = np.zeros((3,) * nodes.ndim)
        structure[tuple(2 if other == axis else 1 for other in range(nodes.ndim))] = 1
        graph.add_grid_edges(nodes, weights=capacity, structure=structure, symmetric=True)
    foreground, background = unary.double().cpu().numpy()
    graph.add_grid_tedges(nodes, background, foreground)  # the side of the source is foreground
    graph.maxflow()
    return torch.from_numpy(~graph.get_grid_segments(nodes))
