"""What goes into a session of interactive segmentation, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from monai.data import MetaTensor
from torch import Tensor

from medrl.data.seeds import Seeds
from medrl.geometry.segmenters import RandomWalker, Segmenter
from medrl.types import InputError

LATTICE = {2: (84, 84), 3: (32, 32, 32)}  # on which an agent decides, by the number of axes
NETWORK, WALKER = "network", "random walker"  # names of masks without an agent, beside the numbers of its seeds


@dataclass(frozen=True)
class Segmentation:
    """A mask and how it came about.

    ``masks`` is filled for assessments only: the mask (X, Y, Z) bool after so many of the agent's seeds, and those of
    the click network and of a plain random walker from the user's clicks alone.
    """

    mask: MetaTensor  # (1, X, Y, Z) uint8, 0 and 1, on the image's grid
    seeds: Seeds  # the user's as given, then the agent's, in order
    user_count: int
    quality: float  # estimated intersection over union with the truth
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def dice(self) -> float:
        """The estimated Dice score."""
        return 2 * self.quality / (1 + self.quality)


@dataclass(frozen=True)
class Rules:
    """How a session goes.

    ``segmenter`` draws the mask; with ``prior`` the object's probability from the user's clicks is its prior: the click
    network's and, for ``agent_share`` of the logit, that of the agent's own segmentation head.  A random walker without
    a prior draws on the agent's own lattice.
    The agent places at most ``max_seeds``, or ``slice_seeds`` in each slice where a volume is done slice by slice; it
    plans them with so many ``sweeps`` of :class:`medrl.inference.seed_planning.SeedPlanner`, 0 for no plan.
    ``keep`` is the mask with the "best" estimated quality (the overlap it may expect with the believed object) or the
    "last"; without a prior, where few seeds move a mask far, the best so far gives way only to one that promises
    ``caution`` more.  The view is the clicks' box and ``margin_mm`` round it; with ``zoom`` s, it closes in to the
    believed object and s times its longest side round it.  Where the user gives no background, the agent's first
    background seed lies at most ``reach`` lattice steps outside the believed object.  ``lattice`` is that on which the
    agent decides, by the number of axes.
    """

    segmenter: Segmenter = field(default_factory=lambda: RandomWalker(prior_weight=0.3))
    prior: bool = True
    max_seeds: int = 10
    sweeps: int = 2
    slice_seeds: int = 3
    keep: str = "best"
    caution: float = 0.05
    margin_mm: float = 150.0
    zoom: float | None = 0.75
    agent_share: float = 0.3
    reach: float = 8.0
    lattice: Mapping[int, Sequence[int]] = field(default_factory=lambda: dict(LATTICE))
    click_options: Mapping[str, Any] = field(default_factory=dict)  # of ClickPrior

    def __post_init__(self) -> None:
        if self.keep not in ("best", "last"):
            raise InputError(f"keep is {self.keep!r}; expected 'best' or 'last'")


class Drawn(NamedTuple):
    """The mask after so many of the agent's seeds."""

    count: int
    potential: Tensor  # (1, *S) on the fine lattice
    quality: float
