"""A click network learns with MONAI's engines, built by name as a bundle does."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from medrl.data.click_samples import make_volume
from medrl.data.clicks import stack_clicks
from medrl.data.masks import MaskCase
from medrl.data.seeds import BACKGROUND, FOREGROUND
from medrl.inference.click_network import ClickPrior
from medrl.training.click_network import (
    Bfloat16Inferer,
    ClickBatches,
    ClickCases,
    ClickIteration,
    GroupOverlap,
    fill_label,
)


def case(name, generator):
    """A ball, bright in one case and dark in the next, in noise."""
    centre, radius = generator.uniform(12, 18, 3), generator.uniform(5, 7)
    index = np.stack(np.meshgrid(*[np.arange(30)] * 3, indexing="ij"), -1)
    mask = torch.as_tensor(np.linalg.norm(index - centre, axis=-1) < radius)
    image = 300 + 20 * torch.as_tensor(generator.standard_normal(mask.shape)).float()
    image[mask] += 150 if int(name[-1]) % 2 else -150
    affine = torch.diag(torch.tensor([-1.2, 1.2, 2.0, 1.0], dtype=torch.float64))
    return MaskCase(name, name, MetaTensor(image[None], affine=affine), MetaTensor(mask[None], affine=affine))


@pytest.fixture
def cases(generator):
    return [case(f"ball_{n}", generator) for n in range(4)]


@pytest.fixture
def volumes(cases):
    return [make_volume(c, "even" if n % 2 == 0 else "odd", levels=2) for n, c in enumerate(cases)]


def test_batches_come_from_one_group_in_the_shares_asked_for(volumes):
    batches = ClickBatches(volumes, batch_size=2, length=30, shape=(24, 32), shares={"even": 1, "odd": 3}, no_click=0.5)
    drawn = list(batches)
    assert len(drawn) == len(batches) == 30
    empty = 0
    for batch in drawn:
        assert batch["image"].shape == batch["label"].shape == (2, 24, 32)
        assert batch["label"].flatten(1).any(1).all()
        for n in range(2):
            kinds = batch["clicks"].label[n][batch["clicks"].node[n] >= 0].tolist()
            assert kinds[:2] in ([], [FOREGROUND, BACKGROUND])
            empty += not kinds
            for node, kind in zip(batch["clicks"].node[n].tolist(), kinds, strict=False):
                assert bool(batch["label"][n].reshape(-1)[node]) == (kind == FOREGROUND)
    assert 15 < empty < 45
    names = [volumes[n].group for n in range(4)]
    assert names.count("odd") == 2
    picked = [batches.groups[int(g)] for g in batches.generator.choice(2, 400, p=batches.share)]
    assert 0.65 < picked.count("odd") / 400 < 0.85


def test_shapes_follow_the_region_and_the_scale(volumes):
    batches = ClickBatches(volumes, length=1, scale=(0.5, 0.5))
    assert {batches.draw()["image"].shape[1:] for _ in range(4)} == {(16, 16, 16)}
    slices = ClickBatches(volumes, length=1, shape=(40, 40), scale=(0.6, 1.2), multiple=8)
    shapes = {tuple(slices.draw()["image"].shape[1:]) for _ in range(20)}
    assert len(shapes) > 3
    assert {side for shape in shapes for side in shape} <= {24, 32, 40, 48}


class Engine:
    """What an iteration needs of MONAI's engine; the network sees no object at all."""

    network = None

    def __init__(self):
        self.batches = []

    def inferer(self, values, network):
        return torch.full((len(values), 1, *values.shape[2:]), -1.0)

    def _iteration(self, engine, batch):
        self.batches.append(batch)
        return batch


def test_corrections_are_put_into_what_was_missed():
    label = torch.zeros(2, 12, 12, dtype=torch.bool)
    label[0, 2:9, 2:9] = True
    label[1, 9, 9] = True
    batch = {"image": torch.full((2, 12, 12), 9, dtype=torch.uint8), "label": label, "clicks": stack_clicks([[], []])}
    engine, seen = Engine(), ClickIteration(probability=1.0, multiple=8)
    answer = seen(engine, batch)
    assert answer["image"].shape == (2, 7, 16, 16)
    assert answer["label"].shape == (2, 1, 16, 16)
    assert int(answer["label"].sum()) == 50
    assert answer["image"][:, 1].flatten(1).argmax(1).tolist() == [5 * 16 + 5, 9 * 16 + 9]
    untouched = ClickIteration(probability=0.0)(engine, batch)
    assert float(untouched["image"][:, 1].max()) == 0


def test_a_bundle_can_name_all_parts(volumes, cases, tmp_path, caplog):
    """Trains for seconds on slices; the overlap rises."""
    config = {
        "device": "$torch.device('cpu')",
        "imports": ["$import torch"],
        "network": {"_target_": "medrl.networks.click_network.ClickNet", "dims": 2, "channels": [8, 16, 16]},
        "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": 0.01},
        "average": {"_target_": "ignite.handlers.EMAHandler", "model": "@network", "momentum": 0.1},
        "batches": {
            "_target_": "medrl.training.click_network.ClickBatches", "volumes": "@volumes", "batch_size": 4,
            "length": 20, "shape": [32, 32], "multiple": 4,
        },
        "validation": {
            "_target_": "medrl.training.click_network.ClickCases", "cases": "@cases", "shape": [32, 32],
        },
        "evaluator": {
            "_target_": "monai.engines.SupervisedEvaluator", "device": "@device", "val_data_loader": "@validation",
            "network": "$@average.ema_model", "inferer": {"_target_": "medrl.training.click_network.Bfloat16Inferer"},
            "iteration_update": {
                "_target_": "medrl.training.click_network.ClickIteration", "probability": 0.0, "multiple": 4,
            },
            "val_handlers": [{"_target_": "medrl.training.click_network.GroupOverlap"}], "decollate": False,
        },
        "trainer": {
            "_target_": "monai.engines.SupervisedTrainer", "device": "@device", "max_epochs": 3,
            "train_data_loader": "@batches", "network": "@network", "optimizer": "@optimizer",
            "loss_function": {"_target_": "monai.losses.DiceCELoss", "sigmoid": True},
            "inferer": {"_target_": "medrl.training.click_network.Bfloat16Inferer"},
            "iteration_update": {"_target_": "medrl.training.click_network.ClickIteration", "multiple": 4},
            "train_handlers": [
                {"_target_": "medrl.training.click_network.Averaging", "average": "@average"},
                {"_target_": "monai.handlers.ValidationHandler", "validator": "@evaluator", "interval": 1},
            ],
            "decollate": False,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    parser = ConfigParser(config)
    parser["volumes"], parser["cases"] = volumes, [("even", cases[0]), ("odd", cases[1])]
    trainer, evaluator = (parser.get_parsed_content(name) for name in ("trainer", "evaluator"))
    evaluator.run()
    before = evaluator.state.metrics["val_iou"]
    with caplog.at_level(logging.INFO):
        trainer.run()
    metrics = evaluator.state.metrics
    assert metrics["val_iou"] == pytest.approx((metrics["val_iou_even"] + metrics["val_iou_odd"]) / 2)
    assert metrics["val_iou"] > max(0.6, before + 0.2)
    assert any("IoU even" in record.message for record in caplog.records)
    network = parser.get_parsed_content("average").ema_model
    values = ClickCases([("odd", cases[1])], shape=(32, 32))[0]
    probability = ClickPrior(network)(values["image"], values["clicks"])
    overlap = ((probability > 0.5) & values["label"]).sum() / ((probability > 0.5) | values["label"]).sum()
    assert float(overlap) == pytest.approx(metrics["val_iou_odd"], abs=0.03)


def test_mixed_precision_answers_in_single(torch_generator):
    network = torch.nn.Conv2d(7, 1, 3, padding=1)
    image = torch.randn(1, 7, 8, 8, generator=torch_generator)
    answer = Bfloat16Inferer()(image, network)
    assert answer.dtype == torch.float32
    assert 0 < float((answer - network(image)).detach().abs().max()) < 0.05


def test_labels_are_filled_up_with_background():
    filled = fill_label(torch.ones(2, 3, 5, dtype=torch.bool), 4)
    assert filled.shape == (2, 1, 4, 8)
    assert float(filled.sum()) == 30


def test_overlap_by_group_without_an_object():
    output = {"pred": -torch.ones(1, 1, 2, 2), "label": torch.zeros(1, 1, 2, 2)}
    overlap = GroupOverlap()
    overlap.add(SimpleNamespace(state=SimpleNamespace(output=output, batch={"group": "a"})))
    assert np.isnan(overlap.overlaps["a"][0])
