"""Registration of two volumes as a MONAI inferer: search, agent, polish, and how sure the answer is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from medrl.data.misalignment import registration_error_mm
from medrl.data.pair_images import PairImage, prepare
from medrl.geometry.poses import Pose, to_matrices
from medrl.inference.policy_walk import look_ahead, walk
from medrl.inference.pose_candidates import Candidates, Search, find_candidates
from medrl.inference.pose_polish import Polished, polish
from medrl.inference.registration_calibration import confidence_of
from medrl.inference.registration_grids import GridPair
from medrl.networks.features import PairNetworks
from medrl.tasks.registration import RegistrationTask
from medrl.types import CONVERGED, NOT_CONVERGED, InputError, Registration

MODES = ("agent", "climb")
POLISHES = ("mutual_information", "none")
INFORMATION = 60.0  # what a nat of mutual information counts beside the learned score, to choose without a polish
UNSURE = "the images do not fit convincingly in any pose: other patients, or too little overlap?"


class Ended(NamedTuple):
    """Where the candidates of a pair ended."""

    candidates: Candidates
    matrices: Tensor  # (K, 4, 4) RAS moving_from_fixed, the best one first
    path: Tensor  # (T, K, 4, 4) of the same, RAS
    evidence: dict[str, float]  # for the best one


class RegistrationInferer(Inferer):
    """Registers a moving volume to a fixed one, from any orientation.

    ``mode`` "agent" walks by the policy, "climb" climbs the learned similarity (the baseline).  ``rollouts`` above 0
    lets the agent look ahead once more, ``depth`` steps deep, from where it stopped.

    ``polish`` "mutual_information" lets all ends of the agent, and the ``spare`` ones of the search, climb at 12 mm by
    SimpleITK, the best of them at 8 mm, and the one with most mutual information at 4 mm; "none" leaves the agent's
    answer.  ``scaled`` True lets the size change; "auto" believes in another size only where the mutual information
    then exceeds that of the best rigid transform by ``least_information`` nats.

    ``calibration`` are weights of the evidence and a "bias".  Where the confidence stays below ``sure`` other
    orientations are searched, up to ``tries`` searches in all; an answer with a confidence below ``threshold`` is
    reported as not converged.  Other options are those of `Search`.
    """

    def __init__(
        self, *, mode: str = "agent", scaled: bool | str = "auto", polish: str = "mutual_information",
        least_information: float = 0.03, tries: int = 2, sure: float = 0.8,
        rollouts: int = 0, depth: int = 6, max_steps: int = 40, threshold: float = 0.75,
        calibration: Mapping[str, float] | None = None, seed: int = 0, **search: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        choices = ((mode, MODES, "mode"), (polish, POLISHES, "polish"), (scaled, (True, False, "auto"), "scaled"))
        for value, known, name in choices:
            if value not in known:
                raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(str, known))}")
        self.mode, self.scaled, self.polish = mode, scaled, polish
        self.least_information, self.tries, self.sure = least_information, tries, sure
        self.rollouts, self.depth, self.max_steps = rollouts, depth, max_steps
        self.threshold, self.calibration, self.seed = threshold, dict(calibration or {}), seed
        self.search = Search(**search)

    def __call__(
        self, inputs: Tensor, network: PairNetworks, *args: Any, moving: Sequence[Any] = (), **kwargs: Any
    ) -> list[Registration]:
        """Register one moving MetaTensor (1, X, Y, Z) to each fixed one of a batch (B, 1, X, Y, Z)."""
        affines = inputs.affine if inputs.affine.ndim == 3 else inputs.affine[None].expand(len(inputs), 4, 4)
        volumes = torch.as_tensor(inputs).as_subclass(Tensor)
        fixed = [MetaTensor(volume, affine=affine) for volume, affine in zip(volumes, affines, strict=True)]
        return [self.register(*pair, network) for pair in zip(fixed, moving, strict=True)]

    def register(self, fixed: MetaTensor, moving: MetaTensor, networks: PairNetworks) -> Registration:
        """Register one pair (1, X, Y, Z) each."""
        first, second = prepare(fixed), prepare(moving)
        for image, role in ((first, "fixed"), (second, "moving")):
            if len(image.body_mm) == 0:
                raise InputError(f"{role}: holds no tissue that stands out; expected a CT in HU or an MR image")
        grids = None
        if self.polish != "none":
            grids = GridPair(fixed, moving)
        found: list[Registration] = []
        for attempt in range(self.tries):
            found.append(self.answer(self.explore(first, second, networks, seed=self.seed + attempt), grids, first))
            if found[-1].confidence >= self.sure:
                break
        return max(found, key=lambda answer: answer.evidence["polished_information"])

    def explore(self, fixed: PairImage, moving: PairImage, networks: PairNetworks, *, seed: int) -> Ended:
        """Search candidates, walk from each, and judge where they ended."""
        scaled = self.scaled is not False
        candidates = find_candidates(
            fixed, moving, networks, search=self.search, scaled=scaled, generator=torch.Generator().manual_seed(seed)
        )
        cases = candidates.cases
        task = RegistrationTask(cases=cases, scaled=scaled, max_steps=self.max_steps)
        policy = networks.policy if self.mode == "agent" else None
        row = torch.arange(len(cases), device=cases.device)
        ended = walk(task, policy, task.at(row, candidates.pose))
        pose, value, path = ended.state.pose, ended.value, ended.path
        if self.rollouts and policy is not None:
            generator = torch.Generator(cases.device).manual_seed(self.seed)
            ahead = look_ahead(
                task, policy, task.at(row, pose), rollouts=self.rollouts, depth=self.depth, generator=generator
            )
            after = walk(task, policy, task.at(row, ahead))
            better = after.value > value
            pose = Pose(*(
                torch.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)
                for a, b in zip(after.state.pose, pose, strict=True)
            ))  # fmt: skip
            value = torch.where(better, after.value, value)
            path = torch.cat([path, to_matrices(pose)[None]])
        seen = cases.look(row, pose)
        rank = seen.score + INFORMATION * seen.information * seen.inside + (0.0 if policy is None else value)
        order = rank.argsort(descending=True).tolist()
        told = {"score": seen.score, "information": seen.information, "value": value}
        path_ras = torch.stack([candidates.pairs[n].to_ras(path[:, n]) for n in order], 1)
        evidence = {name: float(number[order[0]]) for name, number in told.items()}
        return Ended(candidates, path_ras[-1], path_ras, evidence)

    def answer(self, ended: Ended, grids: GridPair | None, fixed: PairImage) -> Registration:
        """Polish all ends on ``grids``, choose one, and say how sure it is."""
        starts = torch.cat([ended.matrices, ended.candidates.spare])
        evidence = dict(ended.evidence)
        if grids is None:  # the agent's own measure stands in
            best = Polished(starts[0], 0, evidence["information"])
        else:
            best = polish(grids, starts, scaled=self.scaled, least_information=self.least_information)
        resized = abs(math.log(float(torch.linalg.det(best.matrix[:3, :3]).abs()))) / 3
        evidence |= {"polished_information": best.information, "resized": resized}
        walked = len(ended.matrices)
        path = ended.path[:, best.start] if best.start < walked else starts[best.start : best.start + 1]
        moved_mm = float(registration_error_mm(path[-1], best.matrix, fixed.body_mm[:: len(fixed.body_mm) // 500 + 1]))
        confidence = confidence_of(self.calibration, evidence)
        sure = confidence >= self.threshold
        return Registration(
            best.matrix, confidence, CONVERGED if sure else NOT_CONVERGED, "" if sure else UNSURE,
            torch.cat([path, best.matrix[None]]), moved_mm, evidence,
        )  # fmt: skip
