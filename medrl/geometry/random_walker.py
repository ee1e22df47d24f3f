"""The random walker of Grady (2006), batched on one device: edge weights, potentials, and response columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from medrl.geometry.conjugate_gradients import HELD, conjugate_gradients
from medrl.geometry.elimination import BlockElimination, elimination_cost
from medrl.geometry.lattice import degree

FOREGROUND, BACKGROUND = 1, 2  # labels of seeds; 0 is no seed
CACHE = 2**18  # nodes solved together on a CPU, so that the vectors stay in its cache
SAFETY = 0.03  # how far below the error of the potential the estimate of conjugate gradients may lie
PATIENCE = 60  # iterations after which a row is taken for one that multigrid cannot help
WEAK, RAGGED = 1e-2, 0.035  # a row is another such if more than this share of its edges is weaker: white noise, mostly
ELIMINATION = 4e10  # multiplications that such a row may cost instead: 100 x 100, or 32 x 32 x 32 nodes

logger = logging.getLogger(__name__)


@torch.no_grad()
def edge_weights(
    image: Tensor,
    *,
    beta: float = 130.0,
    spacing_mm: Sequence[float] | None = None,
    floor: float = 1e-6,
    channels: bool = False,
) -> tuple[Tensor, ...]:
    """Weights ``exp(-beta gradient^2 / (10 std)) + floor`` of the edges along each axis.

    ``image`` (B, *S), or (B, C, *S) with ``channels``, in units of about [0, 1]; uint8 is divided by 255.  Returns one
    float32 tensor (B, *S less 1 along its axis) an axis.  Gradient, scaling by each row's standard deviation and the
    sum over channels are those of scikit-image's ``random_walker``, whose ``floor`` is 1e-10.
    """
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    image = image if channels else image[:, None]
    shape = image.shape[2:]
    spacing = [1.0] * len(shape) if spacing_mm is None else [float(s) for s in spacing_mm]
    if len(spacing) != len(shape):
        raise ValueError(f"spacing_mm has {len(spacing)} values for {len(shape)} axes")
    deviation = image.flatten(1).std(1, correction=0).clamp(min=1e-12)  # a constant image has no gradient either
    scale = -beta / (10 * deviation * image.shape[1] ** 0.5)
    scale = scale.reshape(-1, *[1] * len(shape))
    weights = []
    for axis, step in enumerate(spacing):
        squared = image.diff(dim=axis + 2).square_()
        squared = squared.sum(1) if image.shape[1] > 1 else squared[:, 0]
        weights.append(squared.mul_(scale / step**2).exp_().add_(floor))
    return tuple(weights)


@torch.no_grad()
def walk(
    weights: Sequence[Tensor],
    seeds: Tensor,
    *,
    prior: Tensor | None = None,
    prior_weight: float = 0.0,
    start: Tensor | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 300,
) -> Tensor:
    """Probability (B, *S) that a walker from each node meets a foreground seed first.

    ``seeds`` (B, *S) int8: 0 none, 1 foreground, 2 background; ``weights`` as of ``edge_weights``, with B rows or one.
    With a ``prior`` (B, *S), probabilities of foreground, solves ``(L + prior_weight) u = prior_weight prior`` with
    the seeds held (Grady 2005).  ``start`` (B, *S) is a potential to begin from, as that before the last seed.
    Without a prior, a row with one label only becomes that label everywhere, and a row without seeds 0.5.

    ``tolerance`` is the error to expect in the worst node; 0 takes ``max_iterations`` and never waits for the device.
    Where many small regions hang by edges near the floor, as in noise, iterations are slow and their end is hard to
    tell: such rows are solved by ``eliminate`` if the lattice is small enough, else with more caution.
    """
    shape = seeds.shape
    fitting = [tuple(n - (axis == other) for other, n in enumerate(shape[1:])) for axis in range(len(shape) - 1)]
    if [tuple(weight.shape[1:]) for weight in weights] != fitting:
        raise ValueError(f"weights of shapes {[tuple(w.shape) for w in weights]} do not fit seeds {tuple(shape)}")
    weights, seeds = [weight.expand(shape[0], *weight.shape[1:]) for weight in weights], seeds.contiguous()
    gamma = float(prior_weight) if prior is not None else 0.0
    free = (seeds == 0).to(weights[0].dtype)
    if start is None:
        start = prior if gamma > 0 and prior is not None else torch.full_like(free, 0.5)
    potential = start.to(free).contiguous() * free + (seeds == FOREGROUND)
    pull, ragged = None, torch.zeros_like(free[(slice(None), *[0] * (len(shape) - 1))], dtype=torch.bool)
    if gamma > 0 and prior is not None:
        pull = prior.to(free).contiguous() * gamma
    else:
        labels = [(seeds == label).flatten(1).any(1) for label in (FOREGROUND, BACKGROUND)]
        constant = torch.where(labels[0], 1.0, torch.where(labels[1], 0.0, 0.5))
        each = (-1, *[1] * (len(shape) - 1))
        potential = torch.where((labels[0] & labels[1]).view(each), potential, constant.view(each).to(potential))
        ragged = (_share_of_weak(weights) > RAGGED) & labels[0] & labels[1]
    affordable = elimination_cost(shape[1:]) <= ELIMINATION
    direct = ragged if affordable and tolerance > 0 else torch.zeros_like(ragged)
    index = (~direct).nonzero()[:, 0] if tolerance > 0 else torch.arange(shape[0], device=seeds.device)
    for part in index.split(shape[0] if seeds.is_cuda else max(1, CACHE // max(1, seeds[0].numel()))):
        if len(part) == 0:
            continue
        caution = SAFETY
        if tolerance > 0 and not affordable and bool(ragged[part].any()):
            caution *= SAFETY
        potential[part], slow = conjugate_gradients(
            [weight[part] for weight in weights],
            free[part],
            potential[part],
            shift=gamma,
            pull=None if pull is None else pull[part],
            tolerance=caution * tolerance,
            max_iterations=min(max_iterations, PATIENCE) if affordable and tolerance > 0 else max_iterations,
        )
        if tolerance > 0 and affordable and max_iterations > PATIENCE:
            direct[part] = slow
        elif tolerance > 0 and bool(slow.any()):
            logger.warning("random walker: %d rows of %d did not reach the tolerance", int(slow.sum()), len(part))
    if tolerance > 0:
        for row in direct.nonzero()[:, 0].tolist():
            edges = [weight[row] for weight in weights]
            potential[row] = eliminate(edges, seeds[row], None if pull is None else prior[row], gamma)
    return potential.clamp_(0, 1)


def _share_of_weak(weights: Sequence[Tensor]) -> Tensor:
    """Share (B,) of the edges that hardly conduct."""
    weak = sum((weight < WEAK).flatten(1).sum(1) for weight in weights)
    return weak / max(1, sum(weight[0].numel() for weight in weights))


def eliminate(weights: Sequence[Tensor], seeds: Tensor, prior: Tensor | None = None, gamma: float = 0.0) -> Tensor:
    """What ``walk`` converges to, for ONE row (S) with seeds or a prior, by exact elimination in float64."""
    nodes = degree([weight[None].double() for weight in weights])[0]
    held = nodes * (seeds > 0) * HELD
    right = held * (seeds == FOREGROUND)
    if prior is not None:
        right += gamma * prior
    return BlockElimination(weights, nodes + held + gamma).solve(right.reshape(1, -1)).reshape(seeds.shape)


@torch.no_grad()
def responses(weights: Sequence[Tensor], nodes: Tensor, *, prior_weight: float = 0.0) -> Tensor:
    """Response (K, N) of ONE image's graph to a unit current at each of the ``nodes`` (K,), flat indices.

    ``weights`` are those of one image, without batch axis or with one row.  The columns of the pseudo-inverse of L,
    each of sum 0, or of ``(L + prior_weight)^-1``; float32, by exact elimination (see there what it costs).
    """
    weights = [(weight[0] if weight.ndim > len(weights) else weight).double() for weight in weights]
    diagonal = degree([weight[None] for weight in weights])[0] + prior_weight
    if prior_weight > 0:
        # all terms are positive: float32 keeps their figures
        return BlockElimination(weights, diagonal, dtype=torch.float32).columns(nodes)
    with_earth = diagonal.clone()
    with_earth.view(-1)[diagonal.argmax()] += 1.0  # L alone is singular; the earth is a well-connected node
    inverse = BlockElimination(weights, with_earth)
    columns = inverse.columns(nodes)
    # without the earth: the answer to a unit current that leaves evenly everywhere, less its mean
    columns -= inverse.solve(torch.full_like(diagonal, 1 / diagonal.numel()).reshape(1, -1))
    columns -= columns.mean(1, keepdim=True)
    return columns.float()


@torch.no_grad()
def combine(columns: Tensor, nodes: Tensor, labels: Tensor, *, offset: Tensor | None = None) -> Tensor:
    """Exact potentials (B, N) of k seeds from their responses: what ``walk`` converges to.

    ``columns`` (B, k, N), the responses of the ``nodes`` (B, k); ``labels`` (B, k): 1 foreground, 2 background, 0 for
    no seed (its node and column count for nothing).  ``offset`` (B, N) is the potential without seeds of a walk with
    a prior, where the columns must be those of the same ``prior_weight``.  Of seeds on one node the last one counts.
    Finds currents ``a`` with ``u = offset + a R`` (or, without a prior, ``c + a R`` and ``sum(a) = 0``) such that
    ``u`` is 1 or 0 on the seeds.  Rows with one label, or none, without a prior: as in ``walk``.
    """
    size, count, _ = columns.shape
    later = (nodes[:, :, None] == nodes[:, None, :]) & (labels > 0)[:, None, :]
    used = (labels > 0) & ~later.triu(1).any(2)
    target = (labels == FOREGROUND).double()
    system = columns.new_zeros(size, count + 1, count + 1, dtype=torch.float64)
    pairs = used[:, :, None] & used[:, None, :]
    at_nodes = columns.gather(2, nodes[:, None, :].expand(size, count, count).long()).double()
    system[:, :count, :count] = torch.where(pairs, (at_nodes + at_nodes.mT) / 2, 0.0)
    system[:, range(count), range(count)] += (~used).double()
    if offset is None:
        empty = ~used.any(1)
        system[:, :count, count] = system[:, count, :count] = used.double()
        system[:, count, count] = empty.double()
        right = torch.cat([target * used, 0.5 * empty.double()[:, None]], 1)
    else:
        system[:, count, count] = 1.0
        right = (target - offset.gather(1, nodes.long()).double()) * used
        right = torch.cat([right, torch.zeros_like(right[:, :1])], 1)
    currents = torch.linalg.solve(system, right)
    constant = currents[:, count, None].to(columns) if offset is None else offset.to(columns)
    flow = torch.bmm(currents[:, None, :count].to(columns), columns)[:, 0]
    return (flow + constant).clamp(0, 1)
