"""Make a point's uncertainty mean millimetres, and its presence a probability."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from medrl.data.cases import Source
from medrl.data.fields_of_view import crop_third
from medrl.inference.landmarks import UNCALIBRATED, LandmarkInferer

OWN = (1.0, 5.0, 20.0, 100.0)


def calibrate(
    inferer: LandmarkInferer, network: nn.Module, sources: Sequence[Source], *, margin_mm: float, crops: int = 3,
    seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Fit the calibration on annotated volumes and cropped copies of them.

    ``own``, how much more a point's own crops count, is the one of ``OWN`` with the least mean error.  ``scale`` makes
    the mean uncertainty of points in view equal their mean error.  ``inside``, ``logit`` and ``bias``
    are a logistic model of presence (Platt scaling) over depth in doubts and the network's own logit, with
    both classes weighted alike.  Sources should not be training volumes.
    """
    generator = torch.Generator().manual_seed(seed)

    def mean_error(own: float) -> float:
        inferer.calibration = UNCALIBRATED | {"own": own}
        found = [inferer.locate(source.volume, source.ras_from_voxel, network) for source in sources]
        places = torch.tensor([[point.position_mm for point in points] for points in found], dtype=torch.float64)
        return float((places - torch.stack([s.points_ras for s in sources])).norm(dim=-1).nanmean())

    own = min(OWN, key=mean_error)
    inferer.calibration = UNCALIBRATED | {"own": own}
    errors, doubts, features, present = [], [], [], []
    for source in sources:
        copies = [source, *(crop_third(source, generator, margin_mm=margin_mm) for _ in range(crops))]
        for copy in copies:
            if copy is None:
                continue
            found, evidence = inferer.locate_with_evidence(copy.volume, copy.ras_from_voxel, network)
            known = copy.points_ras.isfinite().all(1)
            inverse = torch.linalg.inv(copy.ras_from_voxel)
            voxel = copy.points_ras @ inverse[:3, :3].T + inverse[:3, 3]
            inside = ((voxel >= -0.5) & (voxel <= torch.tensor(copy.volume.shape) - 0.5)).all(1)
            place = torch.tensor([point.position_mm for point in found], dtype=torch.float64)
            use = known & inside
            errors.append((place - copy.points_ras).norm(dim=1)[use])
            doubts.append(torch.tensor([point.uncertainty_mm for point in found])[use])
            features.append(evidence[known])
            present.append(inside[known])
    scale = float(torch.cat(errors).mean() / torch.cat(doubts).mean())
    x, y = torch.cat(features), torch.cat(present).float()
    result = {"own": own, "scale": scale} | {k: UNCALIBRATED[k] for k in ("inside", "logit", "bias")}
    if 0 < y.mean() < 1:
        weight = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
        prior = torch.tensor([UNCALIBRATED[k] for k in ("inside", "logit", "bias")])
        model = prior.clone().requires_grad_()
        solver = torch.optim.LBFGS([model], max_iter=200, line_search_fn="strong_wolfe")

        def weights() -> torch.Tensor:
            # deeper inside, or a higher logit, never speaks against presence; few cases move the model little
            return torch.cat([softplus(model[:2]), model[2:]])

        def loss() -> torch.Tensor:
            solver.zero_grad()
            value = (
                binary_cross_entropy_with_logits(x @ weights(), y, weight=weight)
                + 1e-2 * (weights() - prior).square().sum()
            )
            value.backward()
            return value

        solver.step(loss)
        result |= dict(zip(("inside", "logit", "bias"), weights().detach().tolist(), strict=True))
    inferer.calibration = result
    return result
