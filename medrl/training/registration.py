"""Training of a registration bundle: features with and without each fold, cases, and what is kept of the agent."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from medrl.data.dataset import SECTIONS
from medrl.data.pair_images import prepare
from medrl.data.pair_samples import COARSE, FINE, AlignedPair, PairSampler
from medrl.data.pairs import read_pair, read_pairs
from medrl.data.write import whole_file, write_json
from medrl.inference.policy_walk import walk
from medrl.networks.features import PairNetworks
from medrl.networks.seed_networks import compact_weights
from medrl.tasks.registration import RegistrationTask
from medrl.training.pair_features import COARSE_POSES, FINE_POSES, FeatureTraining
from medrl.training.parallel import rank_seed
from medrl.training.registration_pool import ImagePair
from medrl.types import InputError

logger = logging.getLogger(__name__)

HOPELESS_MM = 30.0  # errors count up to here: a lost case is lost


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
            pairs += [ImagePair(file.case, file.subject, *read_pair(file.fixed, file.moving)) for file in files]
    if not pairs:
        raise InputError(f"no pairs in {' or '.join(sections)} of dataset.json; expected aligned pairs to train on")
    return pairs


def fold_of(pairs: Sequence[ImagePair], folds: int) -> dict[str, int]:
    """The fold of every subject, by turns in the order of their names, data set after data set."""
    subjects = list(dict.fromkeys(pair.subject for pair in pairs))
    return {subject: number % folds for number, subject in enumerate(subjects)}


class FeatureFolds:
    """Feature networks of all pairs, and of all pairs but those of a fold, in ``folder``.

    An agent that learns on pairs its features were trained on would trust them too much: `networks_of` answers, for
    a subject, the networks that never saw it.  ``coarse`` and ``fine`` are options of `FeatureTraining`, ``options`` of
    `PairNetworks`.
    """

    def __init__(
        self, pairs: Sequence[ImagePair], *, folder: Path | str, folds: int, coarse: Mapping[str, Any],
        fine: Mapping[str, Any], options: Mapping[str, Any] | None = None, device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.pairs, self.folder, self.folds = list(pairs), Path(folder), folds
        self.coarse, self.fine, self.options = dict(coarse), dict(fine), dict(options or {})
        self.device, self.seed = torch.device(device), seed
        self.fold = fold_of(pairs, folds)
        self.loaded: dict[int, PairNetworks] = {}

    def run(self, *, resume: bool = True) -> None:
        """Train what is missing; -1 is the fold that leaves out nobody."""
        prepared = [AlignedPair(p.name, p.subject, prepare(p.fixed), prepare(p.moving)) for p in self.pairs]
        for left_out in (*range(self.folds if self.folds > 1 else 0), -1):
            rest = [pair for pair in prepared if self.fold[pair.subject] != left_out]
            for level, variety, kinds, settings in (
                ("coarse", COARSE, COARSE_POSES, self.coarse), ("fine", FINE, FINE_POSES, self.fine),
            ):  # fmt: skip
                path = self.path(level, left_out)
                checkpoint = path.with_suffix(".ckpt")
                if not resume:
                    path.unlink(missing_ok=True)
                    checkpoint.unlink(missing_ok=True)
                if path.exists():
                    continue
                logger.info("%s features, %s", level, "of all" if left_out < 0 else f"without fold {left_out}")
                with torch.random.fork_rng():
                    torch.manual_seed(self.seed)
                    pair = getattr(PairNetworks(**self.options), level)
                training = FeatureTraining(
                    pair.to(self.device, memory_format=torch.channels_last_3d),
                    PairSampler(rest, variety=variety, seed=self.seed), kinds=kinds, checkpoint=checkpoint,
                    curve=path.with_suffix(".jsonl"), seed=self.seed, **settings,
                )  # fmt: skip
                average = training.run()
                with whole_file(path) as part:
                    torch.save(average.state_dict(), part)
                checkpoint.unlink(missing_ok=True)

    def path(self, level: str, fold: int) -> Path:
        """Where the weights of a fold are."""
        return self.folder / f"{level}_{'all' if fold < 0 else fold}.pt"

    def networks(self, fold: int = -1, policy: nn.Module | None = None) -> PairNetworks:
        """Networks of a fold, with a policy."""
        networks = PairNetworks(**self.options, policy=policy)
        for level in ("coarse", "fine"):
            weights = torch.load(self.path(level, fold), map_location="cpu", weights_only=True)
            getattr(networks, level).load_state_dict(weights)
        networks = networks.to(self.device, memory_format=torch.channels_last_3d)
        return networks.eval().requires_grad_(False)

    def networks_of(self, subject: str) -> PairNetworks:
        """Networks that were not trained on a subject."""
        fold = self.fold[subject] if self.folds > 1 else -1
        if fold not in self.loaded:
            self.loaded[fold] = self.networks(fold)
        return self.loaded[fold]


class RegistrationEvaluator(Evaluator):
    """Walks the policy from the starts of a task's cases; ``state.metrics``: see `measure_walks`.

    The key metric is ``val_error_mm``, lower is better.
    """

    def __init__(
        self, *, device: torch.device | str, task: RegistrationTask, network: nn.Module,
        val_handlers: Sequence | None = None,
    ) -> None:  # fmt: skip
        super().__init__(device=device, val_data_loader=[0], val_handlers=None, decollate=False)
        self.task, self.network = task, network
        if val_handlers is not None:
            self._register_handlers(val_handlers)

    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, Tensor]:
        with self.mode(self.network), torch.no_grad():
            numbers = measure_walks(self.task, self.network)
        engine.state.metrics.update({f"val_{name}": value for name, value in numbers.items()})
        engine.state.output = numbers
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def measure_walks(task: RegistrationTask, network: nn.Module | None, *, rows: int = 64) -> dict[str, float]:
    """Mean error in mm (at most 30 a case), shares below 5 and 10 mm, and steps, from the first start of every case.

    Without a network: of the plain climb of the learned similarity.
    """
    from medrl.geometry.poses import Pose, from_matrices

    errors, steps = [], []
    device = task.cases.device
    for part in torch.arange(len(task.cases), device=device).split(rows):
        pose = Pose(*(value.to(device) for value in from_matrices(task.starts[part.cpu(), 0])))
        ended = walk(task, network, task.at(part, pose))
        errors.append(-task.score(ended.state))
        steps.append(ended.state.time.float())
    error = torch.cat(errors)
    return {
        "error_mm": float(error.clamp(max=HOPELESS_MM).mean()), "below_5mm": float((error < 5).float().mean()),
        "below_10mm": float((error < 10).float().mean()), "steps": float(torch.cat(steps).mean()),
    }  # fmt: skip


class BestPolicy:
    """Keeps the best policy of all stages in ``folder``: a handler of their evaluators.

    Writes ``model.pt``, a bare state dict in half precision of the feature networks and the policy, and ``agent.json``
    (``settings``), whenever ``val_error_mm`` is as low as ever.
    """

    def __init__(self, folder: Path | str, *, features: FeatureFolds, settings: Mapping[str, Any]) -> None:
        self.folder, self.features, self.settings = Path(folder), features, dict(settings)
        self.best = torch.inf
        self.weights: dict[str, Tensor] = {}

    def attach(self, engine: Any) -> None:
        """Listen to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Keep the evaluator's network if it is the best so far."""
        error = float(engine.state.metrics["val_error_mm"])
        logger.info(
            "validation: %.2f mm, %.0f %% below 10 mm, %.1f steps", error, 100 * engine.state.metrics["val_below_10mm"],
            engine.state.metrics["val_steps"],
        )  # fmt: skip
        if error <= self.best:
            self.best = error
            self.keep(engine.network)

    def keep(self, network: nn.Module) -> None:
        """Take a policy for the best, and write both files; of several ranks the first does."""
        self.weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        if rank_seed(0) > 0:
            return
        networks = self.features.networks(policy=copy.deepcopy(network))
        with whole_file(self.folder / "model.pt") as part:
            torch.save(compact_weights(networks), part)
        write_json(self.folder / "agent.json", self.settings)

    def state_dict(self) -> dict[str, Any]:
        """The best error so far, and its policy."""
        return {"best": self.best, "weights": self.weights}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""
        self.best, self.weights = saved["best"], saved["weights"]
