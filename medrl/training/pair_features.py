"""Listwise training of feature networks: which of many poses of an aligned pair is right?"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from medrl.agents.base import schedule
from medrl.agents.cloning import follow
from medrl.data.pair_images import SPACING_MM
from medrl.data.pair_samples import PairSampler, Sample
from medrl.geometry.feature_tables import FeatureTable
from medrl.geometry.quaternions import from_vector, to_matrix
from medrl.networks.features import FeaturePair

logger = logging.getLogger(__name__)

# number of poses, and the most that they are turned (radians), shifted (mm) and resized (log) away from the truth
POSES = ((120, math.pi, 60.0, 0.25), (90, 0.7, 30.0, 0.25), (70, 0.25, 14.0, 0.08), (20, 0.08, 5.0, 0.03))


def draw_poses(
    sample: Sample, kinds: Sequence[tuple[int, float, float, float]], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Matrices (N, 4, 4), the truth last, that move the moving image about the shared tissue, and their errors (N,)."""
    truth = sample.moving_from_fixed
    there = sample.shared_mm @ truth[:3, :3].T + truth[:3, 3]
    middle = there.mean(0)
    changes = []
    for count, turn, shift_mm, growth in kinds:
        draw = torch.randn(2, count, 3, generator=generator)
        axis, way = draw / draw.norm(dim=-1, keepdim=True)
        share = torch.rand(3, count, generator=generator)
        linear = to_matrix(from_vector(axis * turn * share[0, :, None]))
        linear = linear * (growth * (2 * share[1] - 1)).exp()[:, None, None]
        change = torch.eye(4).repeat(count, 1, 1)
        change[:, :3, :3] = linear
        change[:, :3, 3] = middle + way * shift_mm * share[2, :, None] - linear @ middle
        changes.append(change)
    poses = torch.cat([*changes, torch.eye(4)[None]]) @ truth
    reached = sample.shared_mm @ poses[:, :3, :3].transpose(1, 2) + poses[:, None, :3, 3]
    size = torch.linalg.det(truth[:3, :3]) ** (1 / 3)
    return poses, (reached - there).norm(dim=-1).mean(1) / size


def similarity_of(
    pair: FeaturePair, sample: Sample, poses: Tensor, *, count: int, bf16: bool, generator: torch.Generator
) -> Tensor:
    """Learned similarity (N,) of poses (N, 4, 4), from ``count`` places in or near the fixed body."""
    device = pair.log_scale.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        fixed, moving = (
            pair(image[None].to(device), modality)[0].float()
            for image, modality in zip((sample.fixed, sample.moving), sample.modalities, strict=True)
        )
    stride = sample.tissue.shape[0] // fixed.shape[1]
    near = (avg_pool3d(sample.tissue[None, None].float(), 5, 1, 2) > 0.01).float()
    places = (avg_pool3d(near, stride)[0, 0] > 0.3).flatten().nonzero()[:, 0]
    index = places[torch.randint(len(places), (count,), generator=generator)]
    shape = fixed.shape[1:]
    voxel = torch.stack([index // (shape[1] * shape[2]), index // shape[2] % shape[1], index % shape[2]], -1)
    spacing_mm = SPACING_MM * stride
    place = ((voxel - (torch.tensor(shape) - 1) / 2) * spacing_mm).to(device)
    feature = fixed.flatten(1)[:, index.to(device)].T
    table = FeatureTable([moving], spacing_mm)
    poses = poses.to(device)
    there = place @ poses[:, :3, :3].transpose(1, 2) + poses[:, None, :3, 3]
    value, _ = table.sample(torch.zeros(len(poses), dtype=torch.int64, device=device), there)
    return (value * feature).sum(-1).mean(-1) * pair.log_scale.exp()


def listwise_loss(score: Tensor, error_mm: Tensor, width_mm: float) -> Tensor:
    """Kullback-Leibler divergence of softmax(score) from softmax(-error / width) [ListNet, Cao et al. 2007]."""
    target = torch.softmax(-error_mm / width_mm, 0)
    return (target * (torch.log_softmax(-error_mm / width_mm, 0) - torch.log_softmax(score, 0))).sum()


class FeatureTraining:
    """Trains one `FeaturePair` by time or by updates; resumes from ``checkpoint``.

    ``kinds`` are the poses to tell apart, ``width_mm`` how exact, ``count`` the places that a pose is judged by.
    """

    def __init__(
        self, pair: FeaturePair, sampler: PairSampler, *, updates: int,
        kinds: Sequence[tuple[int, float, float, float]] = POSES, width_mm: float = 3.0, count: int = 400,
        batch_size: int = 2, learning_rate: float = 1e-3, average: float = 70.0, bf16: bool = True,
        checkpoint: Path | str | None = None, save_every: int = 100, curve: Path | str | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.pair, self.average = pair, copy.deepcopy(pair).eval().requires_grad_(False)
        self.sampler, self.kinds, self.width_mm, self.count = sampler, tuple(kinds), width_mm, count
        self.updates, self.batch_size, self.learning_rate = updates, batch_size, learning_rate
        self.keep, self.bf16 = 0.5 ** (1 / average), bf16
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.curve = None if curve is None else Path(curve)
        self.save_every = save_every
        self.optimizer = torch.optim.AdamW(pair.parameters(), lr=learning_rate, weight_decay=0.02)
        self.generator = torch.Generator().manual_seed(seed)
        self.update = 0

    def learn(self) -> dict[str, float]:
        """One update on ``batch_size`` pairs; returns the mean loss and the error of the poses that score best."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule(self.update, self.updates, warm_up=50)
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, chosen = 0.0, []
        for _ in range(self.batch_size):
            sample = self.sampler.draw()
            poses, error_mm = draw_poses(sample, self.kinds, self.generator)
            score = similarity_of(self.pair, sample, poses, count=self.count, bf16=self.bf16, generator=self.generator)
            error_mm = error_mm.to(score.device)
            loss = listwise_loss(score, error_mm, self.width_mm) / self.batch_size
            loss.backward()
            loss_sum += float(loss.detach())
            chosen.append(float(error_mm[score.argmax()]))
        nn.utils.clip_grad_norm_(self.pair.parameters(), 1.0)
        self.optimizer.step()
        self.update += 1
        follow(self.average, self.pair, min(self.keep, self.update / (self.update + 10)))
        return {"loss": loss_sum, "error_mm": sum(chosen) / len(chosen)}

    def run(self) -> FeaturePair:
        """Train to the end, from the checkpoint if there is one; returns the averaged networks."""
        if self.checkpoint is not None and self.checkpoint.exists():
            self.load_state_dict(torch.load(self.checkpoint, weights_only=True))
            logger.info("%s: goes on after update %d of %d", self.checkpoint.name, self.update, self.updates)
        recent: list[dict[str, float]] = []
        start = time.perf_counter()
        while self.update < self.updates:
            recent.append(self.learn())
            if self.update % self.save_every == 0 or self.update == self.updates:
                seconds = (time.perf_counter() - start) / len(recent)
                means = {name: sum(r[name] for r in recent) / len(recent) for name in recent[0]}
                logger.info(
                    "update %d of %d: loss %.3f, best pose %.1f mm off, %.2f s an update", self.update, self.updates,
                    means["loss"], means["error_mm"], seconds,
                )  # fmt: skip
                self._note({"update": self.update, **means, "seconds_per_update": seconds})
                self._save()
                recent, start = [], time.perf_counter()
        return self.average

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs."""
        return {
            "pair": self.pair.state_dict(), "average": self.average.state_dict(), "update": self.update,
            "optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state(),
            "sampler": self.sampler.generator.get_state(),
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Undo ``state_dict``."""
        self.pair.load_state_dict(saved["pair"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.update = saved["update"]
        self.generator.set_state(saved["generator"].cpu())
        self.sampler.generator.set_state(saved["sampler"].cpu())

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        from medrl.data.write import whole_file

        with whole_file(self.checkpoint) as part:
            torch.save(self.state_dict(), part)

    def _note(self, numbers: dict[str, float]) -> None:
        if self.curve is not None:
            self.curve.parent.mkdir(parents=True, exist_ok=True)
            with self.curve.open("a", encoding="utf-8") as file:
                file.write(json.dumps(numbers) + "\n")
