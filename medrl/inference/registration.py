"""Registration of two volumes as a MONAI inferer: search, agent, refinement, and how sure the answer is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from medrl.data.pair_images import PairImage, prepare
from medrl.geometry.poses import Pose, to_matrices
from medrl.inference.pair_views import view
from medrl.inference.policy_walk import look_ahead, walk
from medrl.inference.pose_candidates import Candidates, Search, find_candidates, look_again
from medrl.inference.refinement import refine
from medrl.inference.registration_calibration import confidence_of
from medrl.networks.features import PairNetworks
from medrl.tasks.registration import RegistrationTask
from medrl.types import CONVERGED, NOT_CONVERGED, InputError, Registration

MODES = ("agent", "climb")
POLISHES = ("mutual_information", "gradient", "none")
Finish = Callable[[Tensor, bool], tuple[Tensor, float]]
AGREE_MM = 6.0  # two candidates that end closer are one answer
SURE_LEAD = 3.0  # lead of an answer that all candidates agree on


class Ended(NamedTuple):
    """Where the candidates of a pair ended."""

    candidates: Candidates
    pose: Pose  # (K,)
    rank: Tensor  # (K,) higher is better
    evidence: dict[str, Tensor]  # (K,) each
    path: Tensor  # (T, K, 4, 4)


class RegistrationInferer(Inferer):
    """Registers a moving volume to a fixed one, from any orientation.

    ``mode`` "agent" walks by the policy, "climb" climbs the learned similarity (the baseline).  ``rollouts`` above 0
    lets the agent look ahead once more, ``depth`` steps deep, from where it stopped.  The ``finalists`` that rank best
    are polished, and the one with most mutual information wins.

    ``polish`` "mutual_information" climbs by SimpleITK at 12, 8 and 4 mm; "gradient" climbs learned similarity and
    ``information`` times the mutual information at ``places`` at 4 mm, at most ``limit_mm`` far; "none" leaves the
    agent's answer.  ``scaled`` True lets the size change; "auto" believes in another size only where
    the agent found one (its logarithm ``least_scale`` off 0), the polish keeps to it within ``most_drift``, and the
    mutual information then exceeds that of the rigid transform by ``least_information`` nats.

    ``calibration`` are weights of the evidence and a "bias".  Where the confidence stays below ``sure`` other
    orientations are searched, up to ``tries`` searches in all; an answer with a confidence below ``threshold`` is
    reported as not converged.  Other options are those of `Search`.
    """

    def __init__(
        self, *, mode: str = "agent", scaled: bool | str = "auto", polish: str = "mutual_information",
        information: float = 60.0, limit_mm: float = 8.0, least_information: float = 0.02,
        least_scale: float = 0.02, most_drift: float = 0.1, places: int = 6000,
        finalists: int = 2, tries: int = 2, sure: float = 0.8, rollouts: int = 0, depth: int = 6,
        max_steps: int = 40, threshold: float = 0.5, calibration: Mapping[str, float] | None = None, seed: int = 0,
        **search: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        choices = ((mode, MODES, "mode"), (polish, POLISHES, "polish"), (scaled, (True, False, "auto"), "scaled"))
        for value, known, name in choices:
            if value not in known:
                raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(str, known))}")
        self.mode, self.scaled, self.polish, self.information = mode, scaled, polish, information
        self.limit_mm, self.least_information, self.places = limit_mm, least_information, places
        self.tries, self.sure = tries, sure
        self.finalists, self.least_scale, self.most_drift = finalists, least_scale, most_drift
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
        scaled = self.scaled is True or self.scaled == "auto"
        found: list[Registration] = []
        for attempt in range(self.tries):
            ended = self.explore(first, second, networks, scaled=scaled, seed=self.seed + attempt)
            found.append(self.answer(ended, fixed, moving, (first, second), networks, scaled=scaled))
            if found[-1].confidence >= self.sure:
                break
        return max(found, key=lambda answer: answer.evidence["polished_information"])

    def explore(self, fixed: PairImage, moving: PairImage, networks: PairNetworks, *, scaled: bool, seed: int) -> Ended:
        """Search candidates, walk from each, and judge where they ended."""
        generator = torch.Generator().manual_seed(seed)
        candidates = find_candidates(fixed, moving, networks, search=self.search, scaled=scaled, generator=generator)
        return self.walk(candidates, networks, scaled=scaled)

    def walk(self, candidates: Candidates, networks: PairNetworks, *, scaled: bool) -> Ended:
        """Walk from every candidate."""
        cases = candidates.cases
        task = RegistrationTask(cases=cases, scaled=scaled, max_steps=self.max_steps)
        policy = networks.policy if self.mode == "agent" else None
        row = torch.arange(len(cases), device=cases.device)
        ended = walk(task, policy, task.at(row, candidates.pose))
        pose, value = ended.state.pose, ended.value
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
            ended = ended._replace(path=torch.cat([ended.path, to_matrices(pose)[None]]))
        seen = cases.look(row, pose)
        evidence = {
            "score": seen.score, "information": seen.information, "inside": seen.inside, "value": value,
        }  # fmt: skip
        rank = seen.score + self.information * seen.information * seen.inside + (value if policy is not None else 0.0)
        return Ended(candidates, pose, rank, evidence, ended.path)

    def answer(
        self, ended: Ended, fixed: MetaTensor, moving: MetaTensor, images: tuple[PairImage, PairImage],
        networks: PairNetworks, *, scaled: bool,
    ) -> Registration:  # fmt: skip
        """Polish the best candidates, choose one, and say how sure it is."""
        best, evidence, lattice = self.judge(ended)
        order = [best, *(n for n in ended.rank.argsort(descending=True).tolist() if n != best)][: self.finalists]
        matrices = to_matrices(ended.pose)
        found = [ended.candidates.pairs[n].to_ras(matrices[n]) for n in order]
        polished, chosen = found[0], 0
        # without a polish the agent's own measure stands in
        evidence |= {"polished_information": evidence["information"], "polished_lead": evidence["information"]}
        if self.polish != "none":
            finish = self._finisher(fixed, moving, images, networks)
            polished, chosen, more = self._polished(finish, found, lattice, scaled=scaled)
            evidence |= more
        moved_mm = float((_map(polished[None], lattice) - _map(found[chosen][None], lattice)).norm(dim=-1).mean())
        evidence["polish_mm"] = moved_mm
        path = ended.candidates.pairs[order[chosen]].to_ras(ended.path[:, order[chosen]])
        confidence = confidence_of(self.calibration, evidence)
        sure = confidence >= self.threshold
        return Registration(
            polished, confidence, CONVERGED if sure else NOT_CONVERGED,
            "" if sure else "the images do not fit convincingly in any pose: other patients, or too little overlap?",
            torch.cat([path, polished[None]]), moved_mm, evidence,
        )  # fmt: skip

    def _polished(
        self, finish: Finish, found: Sequence[Tensor], lattice: Tensor, *, scaled: bool
    ) -> tuple[Tensor, int, dict[str, float]]:
        """RAS moving_from_fixed after the polish, the index of the candidate it came from, and evidence."""
        centre = lattice.mean(0)
        ends = [self._best_end(finish, start, centre, scaled=scaled) for start in found]
        chosen = max(range(len(found)), key=lambda n: ends[n][1])
        answer, information = ends[chosen]
        apart = [float((_map(m[None], lattice) - _map(answer[None], lattice)).norm(dim=-1).mean()) for m, _ in ends]
        others = [value for (_, value), distance in zip(ends, apart, strict=True) if distance > AGREE_MM]
        lead = information - max(others, default=0.0)
        return answer, chosen, {"polished_information": information, "polished_lead": lead}

    def _best_end(self, finish: Finish, start: Tensor, centre: Tensor, *, scaled: bool) -> tuple[Tensor, float]:
        """Where the polish of one candidate ends, rigid or resized; mutual information alone would shrink bodies."""
        own = _log_scale(start)
        if self.scaled is True:
            return finish(start, True)
        rigid = finish(rigid_part(start, centre), False)
        if not scaled or abs(own) < self.least_scale:
            return rigid
        resized = finish(start, True)
        true_to_agent = abs(_log_scale(resized[0]) - own) < self.most_drift
        return resized if true_to_agent and resized[1] > rigid[1] + self.least_information else rigid

    def _finisher(
        self, fixed: MetaTensor, moving: MetaTensor, images: tuple[PairImage, PairImage], networks: PairNetworks
    ) -> Finish:
        """The polish: of a start (RAS), if its size may change; answers the end and the mutual information there."""
        if self.polish == "mutual_information":
            from medrl.inference.mutual_information import register_mutual_information

            return lambda start, scaled: register_mutual_information(fixed, moving, start=start, scaled=scaled)
        seen = view(images[0], networks)

        def finish(start: Tensor, scaled: bool) -> tuple[Tensor, float]:
            again = look_again(
                fixed_view=seen, moving=images[1], networks=networks, found=start[None], counts=(2000, self.places)
            )
            pose, _ = refine(
                again.cases, 0, again.pose, scaled=scaled, information=self.information, limit_mm=self.limit_mm
            )
            row = torch.zeros(1, dtype=torch.int64, device=again.cases.device)
            return again.pairs[0].to_ras(to_matrices(pose)[0]), float(again.cases.look(row, pose).information)

        return finish

    def judge(self, ended: Ended) -> tuple[int, dict[str, float], Tensor]:
        """The best candidate, the evidence for it by name, and places (L, 3) of the body, RAS."""
        best = int(ended.rank.argmax())
        matrices = to_matrices(ended.pose)
        pairs = ended.candidates.pairs
        ras = torch.stack([pair.to_ras(matrix) for pair, matrix in zip(pairs, matrices, strict=True)])
        place = ended.candidates.cases.points["coarse"].place_mm[0].double().cpu()
        back = torch.linalg.inv(pairs[best].fixed_from_ras)
        lattice = place @ back[:3, :3].T + back[:3, 3]
        apart = (_map(ras, lattice) - _map(ras[best : best + 1], lattice)).norm(dim=-1).mean(-1)  # (K,)
        others = (apart > AGREE_MM).to(ended.rank.device)
        lead = ended.rank[best] - (ended.rank[others].max() if bool(others.any()) else ended.rank.min() - SURE_LEAD)
        evidence = {name: float(value[best]) for name, value in ended.evidence.items()}
        return best, evidence | {"lead": float(lead), "agreement": float((~others).float().mean())}, lattice


def rigid_part(matrix: Tensor, centre: Tensor) -> Tensor:
    """The rotation of a similarity (4, 4), shifted so that the centre (3,) goes where it went."""
    rigid = matrix.clone()
    rigid[:3, :3] = matrix[:3, :3] / math.exp(_log_scale(matrix))
    rigid[:3, 3] = matrix[:3, :3] @ centre + matrix[:3, 3] - rigid[:3, :3] @ centre
    return rigid


def _log_scale(matrix: Tensor) -> float:
    return math.log(abs(float(torch.linalg.det(matrix[:3, :3])))) / 3


def _map(matrices: Tensor, points: Tensor) -> Tensor:
    """Points (K, L, 3) of points (L, 3) by matrices (K, 4, 4)."""
    return points @ matrices[:, :3, :3].transpose(1, 2) + matrices[:, None, :3, 3]
