"""Figures of localisation: average precision, F1, success rates, each with a bootstrap interval over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medrl.geometry.boxes import iou_matrix


class Judged(NamedTuple):
    """Detections of one image against its objects."""

    score: np.ndarray  # (K,)
    right: np.ndarray  # (K,) bool: the best one on an object
    objects: int
    best_iou: float  # of the first detection with any object; 0 where one of the two is missing


def judge(box: Tensor, score: Tensor, truth: Tensor, *, overlap: float = 0.5) -> Judged:
    """Match detections (K, 2 D), best score first, to objects (M, 2 D), each of which counts once [VOC]."""
    order = score.argsort(descending=True)
    box, score = box[order], score[order]
    right = np.zeros(len(box), bool)
    if len(truth) == 0 or len(box) == 0:
        return Judged(score.cpu().double().numpy(), right, len(truth), 0.0)
    match = iou_matrix(box.double(), truth.double()).cpu().numpy()
    taken = np.zeros(len(truth), bool)
    for number in range(len(box)):
        target = int(match[number].argmax())
        if match[number, target] >= overlap and not taken[target]:
            right[number] = taken[target] = True
    return Judged(score.cpu().double().numpy(), right, len(truth), float(match[0].max()))


def average_precision(images: Sequence[Judged]) -> float:
    """Area under the precision envelope over all points [VOC 2010 and later]; NaN without an object."""
    objects = sum(image.objects for image in images)
    if objects == 0:
        return float("nan")
    score = np.concatenate([image.score for image in images])
    right = np.concatenate([image.right for image in images])[np.argsort(-score, kind="stable")]
    hits = right.cumsum()
    precision = hits / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * right).sum() / objects)


def f1(images: Sequence[Judged], threshold: float) -> float:
    """F1 of the detections with a score of at least ``threshold``, over all images; 1 if there is nothing to find."""
    hits = sum(int((image.right & (image.score >= threshold)).sum()) for image in images)
    given = sum(int((image.score >= threshold).sum()) for image in images)
    objects = sum(image.objects for image in images)
    return 2 * hits / (given + objects) if given + objects else 1.0


def image_f1(images: Sequence[Judged], threshold: float) -> float:
    """Mean over images of each image's own F1; an image without object and without detection counts 1."""
    return float(np.mean([f1([image], threshold) for image in images]))


def best_threshold(images: Sequence[Judged]) -> float:
    """Score from which detections give the best F1, half-way to the next lower one."""
    scores = np.unique(np.concatenate([image.score for image in images] or [np.zeros(0)]))
    if len(scores) == 0:
        return 0.5
    middles = np.concatenate([scores[:1], (scores[1:] + scores[:-1]) / 2])
    return float(middles[int(np.argmax([f1(images, threshold) for threshold in middles]))])


def fit_chance(logit: np.ndarray, right: np.ndarray, *, penalty: float = 1e-2) -> tuple[float, float]:
    """Slope and bias (slope positive) of the logistic curve that says how often a detection is right, by Newton."""
    weight = torch.tensor([1.0, 0.0], dtype=torch.float64)
    if len(logit) == 0 or right.all() or not right.any():
        return 1.0, 0.0
    design = torch.stack([torch.as_tensor(logit).double(), torch.ones(len(logit), dtype=torch.float64)], 1)
    target, prior = torch.as_tensor(right).double(), torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(30):
        chance = torch.sigmoid(design @ weight)
        gradient = design.T @ (chance - target) + penalty * len(logit) * (weight - prior)
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design
        curvature = curvature + penalty * len(logit) * torch.eye(2, dtype=torch.float64)
        weight = weight - torch.linalg.solve(curvature, gradient)
    return max(float(weight[0]), 1e-3), float(weight[1])


def bootstrap(
    images: Sequence[Any], measure: Callable[[Sequence[Any]], float], *, draws: int = 500, seed: int = 0
) -> tuple[float, float, float]:
    """A figure and its 95 % interval over images drawn again."""
    generator = np.random.default_rng(seed)
    value = measure(images)
    again = [measure([images[n] for n in generator.integers(0, len(images), len(images))]) for _ in range(draws)]
    again = [number for number in again if np.isfinite(number)] or [value]
    low, high = np.quantile(again, (0.025, 0.975))
    return value, float(low), float(high)
