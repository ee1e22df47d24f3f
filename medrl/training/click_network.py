"""Training of a click network with MONAI's engines: batches of samples, corrections, mixed precision, validation."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from medrl.data.click_samples import Volume, draw_sample, tissue_threshold
from medrl.data.clicks import BAND, Clicks, click_input, error_clicks, first_clicks, stack_clicks
from medrl.data.masks import MaskCase
from medrl.data.regions import grey_levels, is_ct, region_of, sample_image, sample_mask
from medrl.data.seeds import BACKGROUND, FOREGROUND
from medrl.inference.click_network import fill_up

logger = logging.getLogger(__name__)

SWAPPED = 0.15  # share of the volumes whose sides are taken in another order


class ClickBatches:
    """Endless training: every iteration over it draws ``length`` batches of fresh samples with a user's clicks.

    The rows of a batch come from one data set (``Volume.group``), so that they share a shape: that of the region
    which inference lays over the first of them, or ``shape`` in 2D, times ``scale``.

    Args:
        shares: how often each group is drawn; evenly without.
        scale: of the sides, drawn between these; small lattices are quick and teach much of the same.
        multiple: the sides of a shape are rounded to it.
        no_click: probability of a sample without clicks.
        more_clicks: probability of up to ``most_more`` further clicks at random places, all with their true labels.
        plain, upright: probabilities of `medrl.data.click_samples.draw_sample` for each group; 0.7 and 0.5 where it is
            not named.
    """

    def __init__(
        self, volumes: Sequence[Volume], *, batch_size: int = 2, length: int = 100, shape: Sequence[int] | None = None,
        scale: tuple[float, float] = (1.0, 1.0), multiple: int = 8, shares: Mapping[str, float] | None = None,
        plain: Mapping[str, float] | None = None, upright: Mapping[str, float] | None = None,
        lesion: float = 0.2, no_click: float = 0.05, more_clicks: float = 0.2, most_more: int = 5, seed: int = 0,
    ) -> None:  # fmt: skip
        self.volumes, self.batch_size, self.length = volumes, batch_size, length
        self.shape, self.scale = shape, scale
        self.multiple, self.no_click, self.more_clicks, self.most_more = multiple, no_click, more_clicks, most_more
        self.plain, self.upright, self.lesion = dict(plain or {}), dict(upright or {}), lesion
        groups = sorted({volume.group for volume in volumes})
        share = np.array([1.0 if shares is None else shares[group] for group in groups])
        self.groups, self.share = groups, share / share.sum()
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.length):
            yield self.draw()

    def draw(self) -> dict[str, Any]:
        """One batch: ``image`` (B, *S) uint8, ``label`` (B, *S) bool, ``clicks`` and ``group``."""
        generator = self.generator
        group = self.groups[int(generator.choice(len(self.groups), p=self.share))]
        members = [volume for volume in self.volumes if volume.group == group]
        chosen = [members[int(generator.integers(len(members)))] for _ in range(self.batch_size)]
        shape = self._shape(chosen[0])
        chances = {"plain": self.plain.get(group, 0.7), "upright": self.upright.get(group, 0.5), "lesion": self.lesion}
        samples = [draw_sample(volume, shape, generator, **chances) for volume in chosen]
        rows = []
        for sample in samples:
            mask, tissue = sample.mask.numpy(), sample.tissue.numpy()
            if generator.random() < self.no_click:
                rows.append([])
                continue
            scale = sample.voxels_per_node.tolist()
            if len(shape) == 2 and generator.random() < 0.7:  # the working slice is what the user sees
                scale = [1.0, 1.0]
            clicks = first_clicks(
                mask, tissue, variant="inner" if generator.random() < 0.5 else "random", generator=generator,
                voxels_per_node=scale, band=BAND if generator.random() < 0.8 else (2.0, 20.0),
            )  # fmt: skip
            if generator.random() < self.more_clicks:
                for _ in range(int(generator.integers(1, self.most_more + 1))):
                    inside = bool(generator.random() < 0.5)
                    places = np.flatnonzero(mask if inside else ~mask & tissue)
                    if len(places):
                        clicks.append((int(generator.choice(places)), FOREGROUND if inside else BACKGROUND))
            rows.append(clicks)
        return {
            "image": torch.stack([sample.image for sample in samples]),
            "label": torch.stack([sample.mask for sample in samples]),
            "clicks": stack_clicks(rows),
            "group": group,
        }

    def _shape(self, volume: Volume) -> tuple[int, ...]:
        sides = np.array(volume.shape if self.shape is None else self.shape)
        scale = self.generator.uniform(*self.scale, 1 if self.shape is None else len(sides))
        shape = np.maximum(np.round(scale * sides / self.multiple), 1).astype(int) * self.multiple
        if self.shape is None and self.generator.random() < SWAPPED:
            shape = self.generator.permutation(shape)
        return tuple(shape.tolist())


class ClickCases(Sequence[dict[str, Any]]):
    """Validation cases with two clicks each, the same in every run: batches of one row, with ``group``.

    Args:
        cases: (group, case) pairs; a volume is seen on the region that inference lays over it.
        shape: instead the axial slice in which the object is largest, on a lattice of this shape.
        variant: of the clicks; see `medrl.data.clicks.first_clicks`.
    """

    def __init__(
        self, cases: Iterable[tuple[str, MaskCase]], *, shape: Sequence[int] | None = None, variant: str = "random"
    ) -> None:
        self.batches = [_case_batch(group, case, shape, variant) for group, case in cases]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        return self.batches[index]


class ClickIteration:
    """``iteration_update`` of MONAI's trainer and evaluator: adds corrections of the network's errors, then learns.

    With ``probability`` a batch is first answered, and each row gets a geometric number of clicks (mean ``mean``, at
    most ``most``) in the middle of its largest errors.
    """

    def __init__(
        self, *, near: float = 2.0, wide: float = 12.0, multiple: int = 8, probability: float = 0.4, mean: float = 3.0,
        most: int = 10, seed: int = 0,
    ) -> None:  # fmt: skip
        self.near, self.wide, self.multiple = near, wide, multiple
        self.probability, self.mean, self.most = probability, mean, most
        self.generator = np.random.default_rng(seed)

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> Any:
        """Run one iteration of the engine on a batch of `ClickBatches`."""
        image, label, clicks = (batchdata[name] for name in ("image", "label", "clicks"))
        values = self.values(image, clicks)
        if self.probability and self.generator.random() < self.probability:
            clicks = self.correct(engine, values, label, clicks)
            values = self.values(image, clicks)
        target = fill_label(label, self.multiple)
        return engine._iteration(engine, {"image": values, "label": target})

    def values(self, image: Tensor, clicks: Clicks) -> Tensor:
        """The network's input."""
        return fill_up(click_input(image, clicks, near=self.near, wide=self.wide), self.multiple)

    def correct(self, engine: Any, values: Tensor, label: Tensor, clicks: Clicks) -> Clicks:
        """Clicks with those that correct the largest errors."""
        with torch.no_grad():
            predicted = engine.inferer(values, engine.network)[:, 0] > 0
        predicted = predicted[(slice(None), *(slice(size) for size in label.shape[1:]))]
        rows = []
        for n in range(len(label)):
            before = [(int(a), int(b)) for a, b in zip(clicks.node[n], clicks.label[n], strict=True) if a >= 0]
            count = min(int(self.generator.geometric(1 / self.mean)), self.most)
            rows.append(before + error_clicks(label[n].numpy(), predicted[n].numpy(), count))
        return stack_clicks(rows)


class Bfloat16Inferer(SimpleInferer):
    """Runs a network in mixed precision, on a CPU too, where MONAI's ``amp`` does nothing; answers in float32."""

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, 1, *S) float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16):
            answer = super().__call__(inputs, network, *args, **kwargs)
        return answer.float()


class Averaging:
    """Attaches ignite's ``EMAHandler`` as one of ``train_handlers``: MONAI attaches handlers without a name."""

    def __init__(self, average: EMAHandler) -> None:
        self.average = average

    def attach(self, engine: Any) -> None:
        """Average the weights after every iteration."""
        self.average.attach(engine)


class GroupOverlap:
    """Mean IoU of each data set, for ``val_handlers``: ``state.metrics["val_iou_<group>"]`` and the mean, ``val_iou``.

    Batches of one row carry ``group``.
    """

    def __init__(self) -> None:
        self.overlaps: dict[str, list[float]] = {}

    def attach(self, engine: Any) -> None:
        """Listen to an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self.overlaps.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)

    def add(self, engine: Any) -> None:
        """Measure one case."""
        output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
        predicted, label = output["pred"] > 0, output["label"] > 0.5
        union = int((predicted | label).sum())
        overlap = int((predicted & label).sum()) / union if union else math.nan
        self.overlaps.setdefault(engine.state.batch["group"], []).append(overlap)

    def report(self, engine: Any) -> None:
        """Put the means among the metrics."""
        means = {group: float(np.mean(values)) for group, values in sorted(self.overlaps.items())}
        engine.state.metrics |= {f"val_iou_{group}": mean for group, mean in means.items()}
        engine.state.metrics["val_iou"] = float(np.mean(list(means.values())))
        logger.info("IoU %s", " ".join(f"{group} {mean:.3f}" for group, mean in means.items()))


def fill_label(label: Tensor, multiple: int) -> Tensor:
    """Labels (B, 1, *S) float32 with sides that are multiples; background where nodes were added."""
    rest = [n for size in reversed(label.shape[1:]) for n in (0, -size % multiple)]
    return torch.nn.functional.pad(label[:, None].float(), rest)


def _case_batch(group: str, case: MaskCase, shape: Sequence[int] | None, variant: str) -> dict[str, Any]:
    plane = None
    if shape is not None:
        axis = int(case.image.affine[2, :3].abs().argmax())
        area = case.mask[0].as_tensor().sum([n for n in range(3) if n != axis])
        plane = (axis, int(area.argmax()))
    region = region_of(case.image, plane=plane, size=shape)
    values, mask, ct = sample_image(case.image, region), sample_mask(case.mask, region), is_ct(case.image)
    clicks = first_clicks(
        mask.numpy(), (values > tissue_threshold(values, ct=ct)).numpy(), variant=variant,
        generator=np.random.default_rng(zlib.crc32(case.name.encode())),
    )  # fmt: skip
    return {
        "image": grey_levels(values, ct=ct)[None], "label": mask[None], "clicks": stack_clicks([clicks]), "group": group
    }  # fmt: skip
