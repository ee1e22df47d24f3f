"""How sure an answer of a registration is: a logistic model of success over the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

RIDGE = 1.0  # of standardised weights
TELLING = ("polished_information", "resized")  # evidence that tells success, and no more of it


def fit_confidence(rows: Sequence[Mapping[str, float]], success: Sequence[bool]) -> dict[str, float]:
    """Weights by name, and a "bias", of evidence as it is (not standardised); few cases are kept from extremes.

    Where all cases ended alike there is nothing to learn, and the bias alone says so.
    """
    names = list(rows[0])
    table = torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)
    truth = torch.tensor(list(success), dtype=torch.float64)
    mean, spread = table.mean(0), table.std(0).clamp(min=1e-6)
    if bool((truth == truth[0]).all()):
        return {"bias": 2.0 if truth[0] else -2.0}
    design = torch.cat([(table - mean) / spread, torch.ones(len(table), 1, dtype=torch.float64)], 1)
    ridge = RIDGE * torch.eye(design.shape[1], dtype=torch.float64)
    ridge[-1, -1] = 1e-3
    weight = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(50):  # Newton's method
        chance = torch.sigmoid(design @ weight)
        slope = design.T @ (chance - truth) + ridge @ weight
        curvature = design.T @ (design * (chance * (1 - chance))[:, None]) + ridge
        weight = weight - torch.linalg.solve(curvature, slope)
    plain = weight[:-1] / spread
    bias = weight[-1] - (plain * mean).sum()
    return {name: float(value) for name, value in zip(names, plain, strict=True)} | {"bias": float(bias)}


def confidence_of(calibration: Mapping[str, float], evidence: Mapping[str, float]) -> float:
    """Chance of success in [0, 1]; without a calibration everything is believed."""
    if not calibration:
        return 1.0
    total = calibration.get("bias", 0.0)
    total += sum(weight * evidence[name] for name, weight in calibration.items() if name != "bias")
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))


def area_under_curve(confidence: Sequence[float], success: Sequence[bool]) -> float:
    """Chance that a success has a higher confidence than a failure; NaN where one of them is missing."""
    values, truth = torch.tensor(list(confidence)), torch.tensor(list(success))
    good, bad = values[truth], values[~truth]
    if len(good) == 0 or len(bad) == 0:
        return float("nan")
    difference = good[:, None] - bad
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())
