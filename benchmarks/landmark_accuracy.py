"""Accuracy of a landmark agent beside trivial, supervised and classical methods, on one section of a dataset.json.

    python benchmarks/landmark_accuracy.py --bundle bundles/NAME --dataset_dir DIR --split test
        [--rows mean shape agent switches unet classical] [--unet_minutes 8] [--variants] [--pictures DIR]
        [--output results.json]

Rows:

mean       every landmark at its mean offset from the image's centre
shape      the mean shape at the pose and size that fit the truth best: the ceiling of a shape alone
agent      the shipped agent with its default settings
switches   the agent with one setting changed at a time
unet       a heat-map U-Net trained for ``--unet_minutes`` on the training section, varied as it is for the agent
classical  affine registration (mutual information) of 1 and 3 training atlases, and of 3 followed by demons

``--variants`` also stores every case flipped, permuted, oblique, in thick slices and cropped, and tells how far the
agent's points move.  ``--pictures`` draws the best and the worst case of the agent.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from landmark_baselines import AtlasRegistration, MeanPosition, OracleShape
from landmark_heatmaps import HeatmapNet
from landmark_scores import Answer, Method, ask, draw_extremes, score, score_cases, score_landmarks, write_table
from landmark_variants import score_variants, write_variants_table
from torch import nn

from medrl.bundle import load
from medrl.data.anatomy import Anatomy
from medrl.data.cases import Source
from medrl.data.pool import Pool, read_sources
from medrl.data.write import write_json
from medrl.inference.landmarks import LandmarkInferer

logger = logging.getLogger("landmark_accuracy")

ROWS = ("mean", "shape", "agent", "switches", "unet", "classical")
SWITCHES = (
    ("policy", "jumps"), ("policy", "moves"), ("policy", "both"), ("passes", 1), ("passes", 2), ("votes", 1),
    ("votes", 24), ("own", 1.0), ("own", 1000.0), ("starts", 1), ("starts", 8), ("shape_prior", False),
    ("shape_prior", True),
)  # fmt: skip


def load_agent(options: argparse.Namespace) -> tuple[LandmarkInferer, nn.Module]:
    """The agent's inferer and network, as the bundle describes them."""
    bundle = load(options.bundle, options.device, ckpt_dir=options.ckpt_dir)
    return bundle.inferer, bundle.network


def agent(inferer: LandmarkInferer, network: nn.Module, **settings: object) -> Method:
    """A method that walks the agent, with some of the inferer's settings or calibration changed."""
    inferer = copy.copy(inferer)
    inferer.calibration = dict(inferer.calibration)
    for key, value in settings.items():
        setting(inferer, key)  # a misspelt one must not pass unnoticed
        if key in inferer.calibration:
            inferer.calibration[key] = value
        else:
            setattr(inferer, key, value)
    return lambda source: inferer.locate(source.volume, source.ras_from_voxel, network)


def setting(inferer: LandmarkInferer, key: str) -> object:
    """The value of one of an inferer's settings, or of its calibration."""
    return inferer.calibration[key] if key in inferer.calibration else getattr(inferer, key)


def methods(options: argparse.Namespace, inferer: LandmarkInferer, network: nn.Module) -> Iterator[tuple[str, Method]]:
    """The rows' names and methods, in the order of the table; trained or read when their turn comes."""
    rows, anatomy = options.rows, inferer.anatomy
    training: list[Source] = []
    if {"mean", "classical"} & set(rows):
        training = read_sources(options.dataset_dir, "training", labels=anatomy.labels)
    if "mean" in rows:
        yield "mean position", MeanPosition(training, anatomy.labels)
    if "shape" in rows:
        yield "mean shape at the true pose (oracle)", OracleShape(anatomy)
    if "agent" in rows:
        yield "agent", agent(inferer, network)
    if "switches" in rows:
        for key, value in SWITCHES:
            if setting(inferer, key) != value:
                yield f"agent, {key} {value}", agent(inferer, network, **{key: value})
    if "unet" in rows:
        yield f"heat-map U-Net, {options.unet_minutes:g} min", train_unet(options, anatomy)
    if "classical" in rows:
        chosen = [s for s in training if not options.atlases or s.name in options.atlases][:3]
        yield "affine, 1 atlas", AtlasRegistration(chosen[:1], anatomy)
        yield f"affine, {len(chosen)} atlases", AtlasRegistration(chosen, anatomy)
        yield f"affine + demons, {len(chosen)} atlases", AtlasRegistration(chosen, anatomy, demons=True)


def train_unet(options: argparse.Namespace, anatomy: Anatomy) -> HeatmapNet:
    """Train the U-Net on the pool that an agent of this anatomy would see, at its own spacing."""
    torch.manual_seed(options.seed)
    pool = Pool(
        options.dataset_dir, spacing_mm=options.unet_spacing_mm or 2 * anatomy.spacing_mm, margin_mm=anatomy.margin_mm,
        strides=(1,), turned=anatomy.template is not None, window=anatomy.window, seed=options.seed,
        device=options.device, **json.loads(options.variations),
    )  # fmt: skip
    unet = HeatmapNet(pool.anatomy, device=options.device)
    updates = unet.train(pool, minutes=options.unet_minutes, seed=options.seed)
    logger.info("U-Net: %d updates at %g mm", updates, pool.anatomy.spacing_mm)
    return unet


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--ckpt_dir", type=Path, help="other weights, such as those of a training of one's own")
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--split", default="test", choices=("training", "validation", "test"))
    parser.add_argument("--rows", nargs="*", default=["mean", "shape", "agent", "switches"], choices=ROWS)
    parser.add_argument("--classical", action="store_true", help="add the row classical")
    parser.add_argument("--atlases", nargs="*", help="case ids of the training section; default: its first three")
    parser.add_argument("--unet_minutes", type=float, default=0.0, help="above 0 adds the row unet")
    parser.add_argument("--unet_spacing_mm", type=float, help="default: twice the agent's")
    parser.add_argument("--variations", default="{}", help="JSON: options of the U-Net's Variations")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--margin_mm", type=float, help="of cuts from every landmark; default: 3 voxels of the agent")
    parser.add_argument("--cases", nargs="*", help="only these case ids")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    options.rows = [
        *options.rows,
        *(["unet"] if options.unet_minutes > 0 and "unet" not in options.rows else []),
        *(["classical"] if options.classical and "classical" not in options.rows else []),
    ]
    if "unet" in options.rows and options.unet_minutes <= 0:
        parser.error("the row unet needs --unet_minutes")
    return options


def main(arguments: list[str] | None = None) -> dict:
    """Print the tables; returns what ``--output`` holds."""
    options = read_options(arguments)
    torch.set_num_threads(options.threads)
    inferer, network = load_agent(options)
    sources = read_sources(options.dataset_dir, options.split, labels=inferer.anatomy.labels)
    sources = [s for s in sources if not options.cases or s.name in options.cases]
    result: dict = {"split": options.split, "cases": len(sources), "rows": {}, "per_case": {}, "per_landmark": {}}
    plain: list[Answer] = []
    for name, method in methods(options, inferer, network):
        answers = ask(method, sources)
        plain = answers if name == "agent" else plain
        result["rows"][name] = score(answers)
        result["per_case"][name], result["per_landmark"][name] = score_cases(answers), score_landmarks(answers)
        logger.info("%s: %.3f mm", name, result["rows"][name]["mean_mm"])
    print(write_table(result["rows"]))
    if (options.variants or options.pictures) and not plain:
        plain = ask(agent(inferer, network), sources)
    if options.pictures:
        draw_extremes(options.pictures, "agent", plain)
    if options.variants:
        margin_mm = options.margin_mm or 3 * inferer.anatomy.spacing_mm
        result["variants"] = score_variants(agent(inferer, network), plain, margin_mm=margin_mm, seed=options.seed)
        print("\n" + write_variants_table(result["variants"]))
    if options.output:
        write_json(options.output, result)
    return result


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
