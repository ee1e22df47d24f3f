"""Cross-validation of a registration bundle over the patients it was trained on, and what its confidence is worth.

    python benchmarks/registration_folds.py --data DIR [DIR ...] --features MODELS/features --bundle \
        bundles/ct_mri_registration --output OUT.json [--folds 0 1 2] [--ball] [--mode climb] [--polish none] [--fit]

Every pair is moved apart and registered with feature networks that never saw its patient; the policy is the bundle's.
``--ball`` cuts the moving field to a ball: no box edges to read.  ``--fit`` fits the confidence on these registrations
and writes it into the bundle's agent.json; the area under its curve is that of fits on the other folds.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medrl.bundle import load_weights, read_settings
from medrl.data.regions import is_ct
from medrl.data.write import write_json
from medrl.inference.registration import RegistrationInferer
from medrl.inference.registration_calibration import TELLING, area_under_curve, confidence_of, fit_confidence
from medrl.networks.features import PairNetworks
from medrl.networks.policy import PolicyNet
from medrl.training.feature_folds import FeatureFolds, read_image_pairs
from medrl.training.registration import HOPELESS_MM, register_again

logger = logging.getLogger(__name__)

OTHER_OPTIMUM_MM = 20.0  # a smaller error may be the reference's own


def main() -> None:
    """Register all pairs again, fold by fold, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    parser.add_argument("--features", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(6)))
    parser.add_argument("--levels", nargs="*", default=["medium", "large", "similarity"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--mode", default="agent")
    parser.add_argument("--polish", default="mutual_information")
    parser.add_argument("--ball", action="store_true")
    parser.add_argument("--success_mm", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--read", type=Path, nargs="*", help="outputs of earlier runs: only print, and fit")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    settings = read_settings(arguments.bundle / "models")
    if arguments.read:
        rows = [row for path in arguments.read for row in json.loads(path.read_text())]
    else:
        rows = register_folds(arguments, settings)
    for row in rows:
        row["told"] = {name: row["evidence"][name] for name in TELLING}
    show(rows, arguments.success_mm)
    show_refusals(rows, arguments.success_mm, RegistrationInferer(**settings["inference"]))
    if arguments.fit:
        fitted = fit_confidence([r["told"] for r in rows], [r["error_mm"] < OTHER_OPTIMUM_MM for r in rows])
        settings["inference"]["calibration"] = fitted
        write_json(arguments.bundle / "models" / "agent.json", settings)


def register_folds(arguments: argparse.Namespace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Register the pairs of every fold again; keeps what is done after each."""
    network = PairNetworks(coarse=settings["coarse"], policy=PolicyNet(**settings["policy"]))
    policy = load_weights(network, arguments.bundle / "models" / "model.pt", "cpu").float().policy
    features = FeatureFolds(
        read_image_pairs(arguments.data), folder=arguments.features, folds=6, options={"coarse": settings["coarse"]}
    )
    inferer = RegistrationInferer(mode=arguments.mode, polish=arguments.polish, **settings["inference"])
    rows: list[dict[str, Any]] = []
    kinds = {pair.name: "/".join("CT" if is_ct(x) else "MR" for x in pair[2:4]) for pair in features.pairs}
    for fold in arguments.folds:
        pairs = [pair for pair in features.pairs if features.fold[pair.subject] == fold]
        found = register_again(
            inferer, features.networks(fold, policy=policy), pairs, levels=arguments.levels,
            repeats=arguments.repeats, ball=arguments.ball, seed=arguments.seed,
        )  # fmt: skip
        for answer, error_mm, about in found:
            rows.append(
                {
                    **about, "back": about["back"].tolist(), "error_mm": error_mm, "fold": fold,
                    "kind": kinds[about["pair"]], "evidence": answer.evidence, "scale": answer.scale,
                }
            )  # fmt: skip
        arguments.output.write_text(json.dumps(rows))
        logger.info("fold %d: %d registrations", fold, len(rows))
    return rows


def show_refusals(rows: list[dict[str, Any]], success_mm: float, inferer: RegistrationInferer) -> None:
    """Print what the bundle's confidence refuses, and the success if refusals count as failures."""
    error = np.array([row["error_mm"] for row in rows])
    given = np.array([confidence_of(inferer.calibration, row["told"]) for row in rows]) >= inferer.threshold
    wrong = (error[given] > OTHER_OPTIMUM_MM).mean() if given.any() else np.nan
    logger.info(
        "mean error %.2f mm (each at most %g); not converged %.0f %%, of the others wrong %.0f %%",
        error.clip(max=HOPELESS_MM).mean(), HOPELESS_MM, 100 * (~given).mean(), 100 * wrong,
    )  # fmt: skip
    for level in sorted({row["level"] for row in rows}):
        some = np.array([row["level"] == level for row in rows])
        logger.info("%s, refusals as failures: %.0f %%", level, 100 * (given & (error < success_mm))[some].mean())


def show(rows: list[dict[str, Any]], success_mm: float) -> None:
    """Print success, consistency and seconds by kind and level, and the confidence's area under the curve."""
    for kind in sorted({row["kind"] for row in rows}):
        for level in sorted({row["level"] for row in rows}):
            some = [row for row in rows if row["level"] == level and row["kind"] == kind]
            if not some:
                continue
            error = np.array([row["error_mm"] for row in some])
            apart = [
                np.linalg.norm(np.array(a["back"]) - np.array(b["back"]), axis=1).mean()
                for number, a in enumerate(some) for b in some[number + 1 :] if a["pair"] == b["pair"]
            ]  # fmt: skip
            logger.info(
                "%s %s: n %d, < %g mm %.0f %%, < 2 mm %.0f %%, median %.2f mm, consistent %.0f %%, %.1f s", kind,
                level, len(some), success_mm, 100 * (error < success_mm).mean(), 100 * (error < 2).mean(),
                np.median(error), 100 * np.mean(np.array(apart) < 2) if apart else np.nan,
                np.mean([row["seconds"] for row in some]),
            )  # fmt: skip
    if len({row["fold"] for row in rows}) < 2:
        return  # nothing to fit the confidence on
    confidence = []
    for row in rows:
        rest = [other for other in rows if other["fold"] != row["fold"]]
        weights = fit_confidence([r["told"] for r in rest], [r["error_mm"] < OTHER_OPTIMUM_MM for r in rest])
        confidence.append(confidence_of(weights, row["told"]))
    for limit_mm in (success_mm, 15.0, OTHER_OPTIMUM_MM):
        area = area_under_curve(confidence, [row["error_mm"] < limit_mm for row in rows])
        logger.info("confidence against errors above %g mm: area under the curve %.3f", limit_mm, area)


if __name__ == "__main__":
    main()
