"""Feature networks of all pairs, and of all but a fold, whose pairs are then strangers to them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from torch import nn

from medrl.data.dataset import SECTIONS
from medrl.data.pair_images import prepare
from medrl.data.pair_samples import AlignedPair, PairSampler
from medrl.data.pairs import read_pair, read_pairs
from medrl.data.write import whole_file, write_json
from medrl.networks.features import PairNetworks
from medrl.training.pair_features import FeatureTraining
from medrl.types import InputError

logger = logging.getLogger(__name__)


class ImagePair(NamedTuple):
    """An aligned pair of images as read."""

    name: str
    subject: str
    fixed: MetaTensor  # (1, X, Y, Z)
    moving: MetaTensor
    section: str = "training"


def read_image_pairs(dataset_dirs: Sequence[Path | str], sections: Sequence[str] = SECTIONS) -> list[ImagePair]:
    """Read the aligned pairs of some sections of every ``dataset.json`` that has them; InputError if none has."""
    pairs = []
    for folder in dataset_dirs:
        for section in sections:
            try:
                files = read_pairs(folder, section)
            except InputError as error:
                if "has no pairs" not in str(error):
                    raise
                continue
            pairs += [ImagePair(f.case, f.subject, *read_pair(f.fixed, f.moving), section) for f in files]
    if not pairs:
        raise InputError(f"no pairs in {' or '.join(sections)} of dataset.json; expected aligned pairs to train on")
    return pairs


def fold_of(pairs: Sequence[ImagePair], folds: int) -> dict[str, int]:
    """The fold of every subject: 0 for those of a validation section, by turns in the order of their names else."""
    held = {pair.subject for pair in pairs if pair.section == "validation"}
    rest = sorted({pair.subject for pair in pairs} - held)
    first = 1 if held and folds > 1 else 0
    return dict.fromkeys(sorted(held), 0) | {name: first + n % (folds - first) for n, name in enumerate(rest)}


def _kept_folds(path: Path, pairs: Sequence[ImagePair], folds: int) -> dict[str, int]:
    """The folds that an earlier training has written, if they name every subject and are as many."""
    fold = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return fold if all(fold.get(pair.subject, folds) < folds for pair in pairs) else {}


class FeatureFolds:
    """Feature networks of all pairs, and of all pairs but those of a fold, in ``folder``.

    An agent that learns on pairs its features were trained on would trust them too much: `networks_of` answers, for
    a subject, the networks that never saw it.  ``training`` are options of `FeatureTraining`, ``options`` those of
    `PairNetworks`.  The folds are those of the folder's ``folds.json`` if it names every subject, else of `fold_of`.
    """

    def __init__(
        self, pairs: Sequence[ImagePair], *, folder: Path | str, folds: int, training: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None, device: torch.device | str = "cpu", seed: int = 0,
    ) -> None:  # fmt: skip
        self.pairs, self.folder, self.folds = list(pairs), Path(folder), folds
        self.training, self.options = dict(training or {}), dict(options or {})
        self.device, self.seed = torch.device(device), seed
        self.fold = _kept_folds(self.folder / "folds.json", pairs, folds) or fold_of(pairs, folds)
        self.complete = False
        self.loaded: dict[int, PairNetworks] = {}

    def run(self, *, resume: bool = True) -> None:
        """Train what is missing (without ``resume`` everything, once); -1 is the fold that leaves out nobody."""
        if self.complete:
            return
        write_json(self.folder / "folds.json", self.fold)
        prepared = [AlignedPair(p.name, p.subject, prepare(p.fixed), prepare(p.moving)) for p in self.pairs]
        for left_out in (*range(self.folds if self.folds > 1 else 0), -1):
            path = self.path(left_out)
            checkpoint = path.with_suffix(".ckpt")
            if not resume:
                for old in (path, checkpoint, path.with_suffix(".jsonl")):
                    old.unlink(missing_ok=True)
            if path.exists():
                continue
            logger.info("features %s", "of all" if left_out < 0 else f"without fold {left_out}")
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                pair = PairNetworks(**self.options).coarse
            training = FeatureTraining(
                pair.to(self.device, memory_format=torch.channels_last_3d),
                PairSampler([p for p in prepared if self.fold[p.subject] != left_out], seed=self.seed),
                checkpoint=checkpoint, curve=path.with_suffix(".jsonl"), seed=self.seed, **self.training,
            )  # fmt: skip
            average = training.run()
            with whole_file(path) as part:
                torch.save(average.state_dict(), part)
            checkpoint.unlink(missing_ok=True)
        self.complete = True

    def path(self, fold: int) -> Path:
        """Where the weights of a fold are."""
        return self.folder / f"coarse_{'all' if fold < 0 else fold}.pt"

    def networks(self, fold: int = -1, policy: nn.Module | None = None) -> PairNetworks:
        """Networks of a fold, with a policy."""
        networks = PairNetworks(**self.options, policy=policy)
        networks.coarse.load_state_dict(torch.load(self.path(fold), map_location="cpu", weights_only=True))
        networks = networks.to(self.device, memory_format=torch.channels_last_3d)
        return networks.eval().requires_grad_(False)

    def networks_of(self, subject: str) -> PairNetworks:
        """Networks that were not trained on a subject."""
        fold = self.fold[subject] if self.folds > 1 else -1
        if fold not in self.loaded:
            self.loaded[fold] = self.networks(fold)
        return self.loaded[fold]
