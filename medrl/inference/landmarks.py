"""Landmark agents on one volume: find the frame, walk, agree, judge presence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medrl.data.anatomy import Anatomy
from medrl.data.cases import Cases, Source
from medrl.geometry.grids import OUTSIDE, grey_window, thin
from medrl.geometry.similarity import apply, fit_robust
from medrl.inference.consensus import agree, shape_posterior
from medrl.inference.pose import search_pose
from medrl.inference.walk import Walked, jump, look, move
from medrl.tasks.landmark import LandmarkTask
from medrl.types import FOUND, MISSING, NOT_CONVERGED, Landmark

UNCALIBRATED = {"own": 20.0, "scale": 1.0, "inside": 1.5, "logit": 0.5, "bias": 0.0}


class LandmarkInferer(Inferer):
    """Walks agents for all landmarks of a volume.

    First pass: the frame is the patient's own axes (or the template's pose, where the anatomy has one); from each of
    ``starts`` places one walker a landmark sets out, and the agreed points give the pose and size of the anatomy.
    Second pass: the volume is read again in that anatomical frame, the walkers go on from their fitted places, and
    each point is a mean over what all crops say of it: every crop counts by its predicted spread, the point's own
    ``votes`` crops ``calibration["own"]`` times.  ``policy`` is "jumps" (the continuous action of the offset head),
    "moves" (the discrete moves of the Q-values) or "both" (moves, then jumps).

    The anatomy's ``calibration`` turns scatter and spread into an uncertainty in mm and a presence probability.
    """

    def __init__(
        self, anatomy: Anatomy, *, policy: str = "jumps", starts: int = 3, jumps: int = 4, passes: int = 2,
        votes: int = 8, vote_mm: float | None = None, step_mm: Sequence[float] | None = None, budget: int = 60,
        shape_prior: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if policy not in ("jumps", "moves", "both"):
            raise ValueError(f"policy must be 'jumps', 'moves' or 'both', not {policy!r}")
        self.anatomy, self.policy, self.starts, self.jumps, self.passes = anatomy, policy, starts, jumps, passes
        self.votes, self.vote_mm = votes, anatomy.spacing_mm * 2 if vote_mm is None else vote_mm
        self.step_mm, self.budget, self.shape_prior = step_mm, budget, shape_prior
        self.calibration = UNCALIBRATED | anatomy.calibration
        self.seed = seed

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> list[list[Landmark]]:
        """Landmarks of a batch (B, 1, X, Y, Z) of MetaTensors; ``affine`` is each one's ras_from_voxel."""
        affines = inputs.affine if inputs.affine.ndim == 3 else inputs.affine[None].expand(len(inputs), 4, 4)
        return [self.locate(volume[0], affine, network) for volume, affine in zip(inputs, affines, strict=True)]

    def locate(self, volume: Tensor, ras_from_voxel: Tensor, network: nn.Module) -> list[Landmark]:
        """All landmarks of one volume (X, Y, Z) whose voxels lie at ``ras_from_voxel`` (4, 4), in label order."""
        return self.locate_with_evidence(volume, ras_from_voxel, network)[0]

    @torch.no_grad()
    def locate_with_evidence(
        self, volume: Tensor, ras_from_voxel: Tensor, network: nn.Module
    ) -> tuple[list[Landmark], Tensor]:
        """The landmarks, and the features (L, 3) on which their presence was decided."""
        network.eval()
        device = next(network.parameters()).device
        volume = torch.as_tensor(volume).as_subclass(Tensor)
        ras_from_voxel = torch.as_tensor(ras_from_voxel).as_subclass(Tensor).double().cpu()
        anatomy, generator = self.anatomy, torch.Generator().manual_seed(self.seed)
        heads, shape, window = len(anatomy.labels), volume.shape, grey_window(volume, anatomy.window)
        ras_from_file = ras_from_voxel
        volume, ras_from_voxel = thin(volume, ras_from_voxel, anatomy.spacing_mm)  # once for all passes
        frame, box = None, None
        if anatomy.template is not None:
            frame, _ = search_pose(volume, ras_from_voxel, anatomy, generator)
            box = anatomy.box_mm()
        steps, trail = torch.zeros(heads, dtype=torch.long), []
        places_ras: Tensor | None = None
        for number in range(self.passes):
            cases = self._cases(volume, ras_from_voxel, frame, box, window).to(device)
            task = LandmarkTask(cases, size=anatomy.size, step_mm=self.step_mm)
            first = number == 0
            start = self._starts(cases, places_ras, generator, spread=first and frame is None)
            walked = self._walk(task, network, start.to(device), first)
            steps = steps + walked.steps.reshape(-1, heads).amax(0).cpu()
            ends = walked.position_mm.reshape(-1, heads, 3)
            trail.append(cases.to_ras(0, walked.path_mm.cpu().reshape(len(start), heads, -1, 3)[0]))
            last = number == self.passes - 1
            agreed, doubt, scatter, logit = self._vote(task, network, ends, few=not last)
            converged = walked.converged.reshape(-1, heads).any(0).cpu()
            places_ras = cases.to_ras(0, agreed)
            if not last:
                frame, box = fit_robust(anatomy.shape_mm, places_ras, 1 / doubt.cpu().square()), anatomy.box_mm()
        if self.shape_prior:
            fitted = apply(torch.linalg.inv(fit_robust(anatomy.shape_mm, places_ras)), anatomy.shape_mm.double())
            places_ras = shape_posterior(places_ras, doubt.cpu().double(), fitted, anatomy.spread_mm.double())
        doubt = (doubt**2 + scatter**2).sqrt().cpu()
        # structures that differ more between persons are harder, also where the network does not say so
        uncertainty = self.calibration["scale"] * (doubt**2 + anatomy.spread_mm**2).sqrt()
        depth = _depth_mm(places_ras, ras_from_file, shape)
        evidence = presence_evidence(depth, doubt, logit.cpu())
        weight = torch.tensor([self.calibration[k] for k in ("inside", "logit", "bias")])
        presence = torch.sigmoid(evidence @ weight)
        path = torch.cat(trail, 1)
        landmarks = [
            Landmark(
                label=label, position_mm=tuple(places_ras[n].tolist()),
                status=MISSING if presence[n] < 0.5 else FOUND if bool(converged[n]) else NOT_CONVERGED,
                uncertainty_mm=float(uncertainty[n]), presence=float(presence[n]), steps=int(steps[n]),
                path_mm=torch.cat([path[n], places_ras[n][None]]).float().numpy(),
            )
            for n, label in enumerate(anatomy.labels)
        ]  # fmt: skip
        return landmarks, evidence

    def _cases(
        self, volume: Tensor, ras_from_voxel: Tensor, frame: Tensor | None, box: tuple | None,
        window: tuple[float, float],
    ) -> Cases:  # fmt: skip
        anatomy = self.anatomy
        unknown = torch.full((len(anatomy.labels), 3), torch.nan, dtype=torch.float64)
        return Cases.from_sources(
            [Source("volume", volume, ras_from_voxel, unknown)], labels=anatomy.labels, spacing_mm=anatomy.spacing_mm,
            strides=tuple(anatomy.strides), frames=None if frame is None else [frame], box_mm=box, window=window,
        )  # fmt: skip

    def _starts(self, cases: Cases, places_ras: Tensor | None, generator: torch.Generator, *, spread: bool) -> Tensor:
        """Start places (K, L, 3): the fitted mean shape, or the mean shape at several places of the foreground."""
        if places_ras is not None or not spread:
            shape = apply(torch.linalg.inv(cases.ras_from_centre[0]), self._shape_ras(cases, places_ras)).float()
            return shape[None]
        grey = cases.pyramid.flat[-1].cpu().reshape((cases.pyramid.shape[0].cpu() // cases.pyramid.shrink[-1]).tolist())
        bright = (grey.float() > grey[grey != OUTSIDE].float().mean()).nonzero().float()
        middle = (torch.tensor(grey.shape) - 1) / 2
        places = (bright - middle) * cases.pyramid.spacing_mm * cases.pyramid.shrink[-1]
        centre, reach = places.mean(0), places.std(0)
        jitter = torch.randn(self.starts, 3, generator=generator) * reach * 0.5
        jitter[0] = 0
        return centre + jitter[:, None] + self.anatomy.shape_mm

    def _shape_ras(self, cases: Cases, places_ras: Tensor | None) -> Tensor:
        lower, upper = self.anatomy.box_mm()
        in_grid = self.anatomy.shape_mm.double() - (lower + upper) / 2  # the grid is the frame's box
        return cases.to_ras(0, in_grid)

    def _walk(self, task: LandmarkTask, network: nn.Module, start: Tensor, first: bool) -> Walked:
        count, heads = start.shape[:2]
        rows = count * heads
        case = torch.zeros(rows, dtype=torch.long, device=start.device)
        head = torch.arange(heads, device=start.device).repeat(count)
        scale = 0 if first else len(task.step_mm) - 1
        state = task.state(case, head, start.reshape(rows, 3), scale)
        settle = 2 * self.anatomy.spacing_mm
        if self.policy == "jumps":
            return jump(task, network, state, jumps=self.jumps if first else 2, settle_mm=settle)
        walked = move(task, network, state, budget=self.budget)
        if self.policy == "both":
            more = jump(task, network, state._replace(position=walked.position_mm), jumps=2, settle_mm=settle)
            path = torch.cat([walked.path_mm, more.path_mm], 1)
            return more._replace(
                steps=walked.steps + more.steps, path_mm=path, converged=walked.converged & more.converged
            )
        return walked

    def _vote(self, task: LandmarkTask, network: nn.Module, ends: Tensor, *, few: bool) -> tuple[Tensor, ...]:
        """Agreed places (L, 3), their doubt, scatter and presence logit (L,), from crops round the end points."""
        count, heads, _ = ends.shape
        votes = 1 if few else max(1, self.votes // count)
        pattern = torch.randn(votes, 1, 1, 3, generator=torch.Generator().manual_seed(self.seed)).to(ends.device)
        pattern[0] = 0
        places = (ends + self.vote_mm * pattern).reshape(-1, 3)
        rows = len(places)
        head = torch.arange(heads, device=ends.device).repeat(rows // heads)
        seen = look(task, network, task.state(torch.zeros(rows, dtype=torch.long, device=ends.device), head, places))
        every = torch.arange(rows, device=ends.device)
        points, spread, logit = (
            seen.centre_mm[:, None] + seen.heads.offset_mm,
            seen.heads.spread_mm,
            seen.heads.presence,
        )
        # in the first pass every crop counts alike, so that one walker that went astray cannot turn the frame
        trust = torch.ones(rows, heads, device=ends.device)
        trust[every, head] = 1.0 if few else self.calibration["own"]
        weight = trust * spread**-3
        agreed = agree(points, weight, cut=3.5 if few else float("inf"))
        share = weight / weight.sum(0)
        doubt = 1 / (share / spread).sum(0)
        return agreed.position_mm, doubt, agreed.scatter_mm, (share * logit).sum(0)


def presence_evidence(depth_mm: Tensor, doubt_mm: Tensor, logit: Tensor) -> Tensor:
    """Features (L, 3) of the presence model: depth inside the field of view in doubts, the head's logit, 1."""
    depth = (depth_mm / doubt_mm.clamp(min=1e-3)).clamp(-10, 10)
    return torch.stack([depth, logit, torch.ones_like(logit)], 1)


def _depth_mm(places_ras: Tensor, ras_from_voxel: Tensor, shape: Sequence[int]) -> Tensor:
    """How deep (L,) in mm points (L, 3) lie inside a volume's field of view; negative outside."""
    voxel = apply(torch.linalg.inv(ras_from_voxel), places_ras)
    spacing = ras_from_voxel[:3, :3].norm(dim=0)
    size = torch.tensor(list(shape), dtype=voxel.dtype)
    return (torch.minimum(voxel + 0.5, size - 0.5 - voxel) * spacing).amin(1).float()
