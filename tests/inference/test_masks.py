"""A folder of images and clicks -> files and report, and what its masks are worth."""

from __future__ import annotations

import csv
import json
import logging

import nibabel
import numpy as np
import pytest
import torch
from bright import bright_image, bright_networks, clicks_on, overlap, ras
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose
from scipy import ndimage

from medrl.data.masks import MaskFiles, write_mask, write_mask_dataset
from medrl.data.seeds import Seeds, make_seeds, read_seeds, seed_voxels, write_seeds
from medrl.data.transforms import LoadImageStrictd, LoadSeedsd
from medrl.data.write import write_image
from medrl.inference.mask_assessment import MaskAssessment, measure, summarise
from medrl.inference.mask_transforms import (
    LoadMaskd,
    SaveSegmentationd,
    SegmentationMaskd,
    SimulateSeedsd,
    simulate_seeds,
)
from medrl.inference.prediction import CasePredictor, SegmentationAnswers, list_click_cases, list_mask_cases
from medrl.inference.seeding import SeedingInferer
from medrl.inference.segmentation import Segmentation
from medrl.types import InputError

SMALL = {2: (30, 30), 3: (18, 18, 18)}


def predictor(cases, output_dir, *more, handlers=None, pictures=False, **options) -> CasePredictor:
    reading = [LoadImageStrictd(keys="image", one_slice=True), LoadSeedsd(keys="seeds"), *more]
    writing = [SegmentationMaskd(keys="pred"), SaveSegmentationd(output_dir=output_dir, pictures=pictures)]
    return CasePredictor(
        device="cpu", dataset=Dataset(cases, Compose(reading)), network=bright_networks(), output_dir=output_dir,
        inferer=SeedingInferer(lattice=SMALL, **options), postprocessing=Compose(writing), arguments=["seeds"],
        answers=SegmentationAnswers(), val_handlers=handlers, progress_bar=False,
    )  # fmt: skip


def write_case(folder, name, image, seeds: Seeds | None = None, suffix=".nii.gz") -> None:
    write_image(folder / f"{name}{suffix}", image[0].numpy().astype(np.int16), image.affine.numpy())
    if seeds is not None:
        write_seeds(folder / f"{name}_seeds.mrk.json", seeds)


def test_a_folder_of_good_and_bad_cases(tmp_path, caplog):
    folder, output = tmp_path / "Planted^Name", tmp_path / "out"
    folder.mkdir()
    image, truth = bright_image()
    clicks = clicks_on(image)
    write_case(folder, "clicked", image, clicks)
    write_case(folder, "unclicked", image, suffix=".nrrd")
    only_background = make_seeds([ras(image, 1, 1, 1)], [False])
    write_case(folder, "background", image, only_background)
    flat, flat_truth = bright_image((30, 26, 1))
    write_case(folder, "slice", flat, clicks_on(flat))
    write_case(folder, "outside", image, make_seeds([ras(image, 90, 0, 0)], [True]))
    inside = ras(image, 10, 9, 8)
    write_case(folder, "both", image, make_seeds([inside, inside], [True, False]))
    write_case(folder, "garbled", image)
    (folder / "garbled_seeds.mrk.json").write_text("{")
    write_case(folder, "constant", MetaTensor(torch.full((1, 8, 8, 8), 3.0), affine=torch.eye(4)))
    engine = predictor(list_click_cases(folder), output)
    with caplog.at_level(logging.DEBUG):
        engine.run()
    cases = engine.report["cases"]
    assert {case for case in cases if cases[case]["status"] == "done"} == {
        "background", "clicked", "slice", "unclicked"
    }  # fmt: skip
    reasons = engine.failures
    assert "outside_seeds.mrk.json: seed 1 lies" in reasons["outside"]
    assert "both_seeds.mrk.json: seeds 1 and 2 are foreground and background in one voxel" in reasons["both"]
    assert "garbled_seeds.mrk.json" in reasons["garbled"]
    assert "every voxel has the same value" in reasons["constant"]
    for case, mask, like in (("clicked", truth, image), ("unclicked", truth, image), ("slice", flat_truth, flat)):
        written = nibabel.load(output / f"{case}_seg.nii.gz")
        assert written.get_data_dtype() == np.uint8
        assert np.abs(written.affine - like.affine.numpy()).max() < 1e-3
        voxels = torch.as_tensor(np.asarray(written.dataobj))
        assert voxels.shape == mask.shape
        assert overlap(voxels, mask) > 0.9
        assert cases[case]["voxels"] == int(voxels.sum())
        volume_ml = int(voxels.sum()) * float(torch.linalg.det(like.affine[:3, :3]).abs()) / 1000
        assert cases[case]["volume_ml"] == pytest.approx(volume_ml, abs=1e-3)
    seeds = read_seeds(output / "clicked_seeds.mrk.json")
    assert (seeds.position_ras[:2] - clicks.position_ras).abs().max() < 1e-3
    assert cases["clicked"]["seeds"] == {"user": 2, "agent": len(seeds.foreground) - 2}
    assert set(cases["clicked"]["seconds"]) == {"read", "find", "write"}
    assert cases["clicked"]["files"] == ["clicked_seg.nii.gz", "clicked_seeds.mrk.json"]
    assert 0 < cases["clicked"]["estimated_iou"] <= cases["clicked"]["estimated_dice"] <= 1
    corner = nibabel.load(output / "background_seg.nii.gz").dataobj[1, 1, 1]
    assert corner == 0
    names = {path.name for path in output.iterdir()}
    assert names == {"report.json", *(f for case in cases.values() for f in case.get("files", []))}
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert "Planted" not in "\n".join([*lines, (output / "report.json").read_text()])


def test_pictures(tmp_path):
    image, _ = bright_image()
    write_case(tmp_path, "one", image, clicks_on(image))
    engine = predictor(list_click_cases(tmp_path), tmp_path / "out", pictures="true")
    engine.run()
    assert engine.report["cases"]["one"]["files"] == [
        "one_seg.nii.gz", "one_seeds.mrk.json", "one.png", "one.html",
    ]  # fmt: skip
    assert (tmp_path / "out/one.png").stat().st_size > 10_000
    assert "foreground" in (tmp_path / "out/one.html").read_text()
    with pytest.raises(InputError, match="pictures is 'maybe'"):
        predictor([], tmp_path, pictures="maybe")


def test_evaluation_against_the_truth(tmp_path):
    entries = []
    for n, shape in enumerate(((24, 20, 18), (20, 24, 18), (22, 22, 20), (28, 24, 1))):
        image, truth = bright_image(shape, seed=n)
        write_case(tmp_path, f"c{n}", image, clicks_on(image) if n == 0 else None)
        write_mask(tmp_path / f"label{n}.nii.gz", truth[None], image)
        entries.append(MaskFiles(tmp_path / f"c{n}.nii.gz", tmp_path / f"label{n}.nii.gz", f"{n}"))
    other, truth = bright_image((24, 20, 18))
    write_case(tmp_path, "moved", other)
    other.affine[0, 3] += 30
    write_mask(tmp_path / "label_moved.nii.gz", truth[None], other)
    entries.append(MaskFiles(tmp_path / "moved.nii.gz", tmp_path / "label_moved.nii.gz", "m"))
    write_mask_dataset(tmp_path, "bright", "object", {"test": entries})
    cases = list_mask_cases(tmp_path, "test")
    assert [case["seeds"] is not None for case in cases] == [True, False, False, False, False]
    engine = predictor(
        cases, tmp_path / "out", LoadMaskd(keys="label"), SimulateSeedsd(), handlers=[MaskAssessment(tmp_path / "out")],
        counts=(0, 1, 3, 5, 10),
    )  # fmt: skip
    engine.run()
    assert list(engine.failures) == ["moved"]
    assert "lies 30.0 mm off its image" in engine.failures["moved"]
    summary = json.loads((tmp_path / "out/evaluation.json").read_text())
    with (tmp_path / "out/evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert summary["cases"] == len(rows) == 4
    assert list(summary["methods"]) == [
        "agent", "network", "random walker", "0 seeds", "1 seeds", "3 seeds", "5 seeds", "10 seeds",
    ]  # fmt: skip
    mean = np.mean([float(row["iou"]) for row in rows])
    assert summary["methods"]["agent"]["iou"]["value"] == pytest.approx(mean, abs=1e-3)
    assert mean > 0.9
    assert set(summary["agent_gain"]) == {"network", "random walker", "0 seeds"}
    assert engine.report["cases"]["c1"]["seeds"]["user"] == 2


def test_measures_by_hand():
    truth = torch.zeros(20, 20, 20, dtype=torch.bool)
    truth[5:15, 5:15, 5:15] = True
    mask = torch.zeros_like(truth)
    mask[5:15, 5:15, 9:19] = True  # four slices too high
    spacing_mm = torch.tensor([1.0, 1.0, 3.0]).double()
    numbers = measure(mask, truth, spacing_mm)
    assert numbers["iou"] == pytest.approx(600 / 1400)
    assert numbers["dice"] == pytest.approx(0.6)
    assert numbers["hd95_mm"] == pytest.approx(12.0, abs=3.0)
    assert 0.3 < numbers["surface_dice"] < 0.9
    assert measure(truth, truth, spacing_mm) == {"iou": 1.0, "dice": 1.0, "hd95_mm": 0.0, "surface_dice": 1.0}
    empty = measure(torch.zeros_like(truth), truth, spacing_mm)
    assert empty["hd95_mm"] == pytest.approx((20**2 + 20**2 + 60**2) ** 0.5)
    assert (empty["iou"], empty["dice"], empty["surface_dice"]) == (0.0, 0.0, 0.0)
    flat = measure(mask[:, :, 10:11], truth[:, :, 10:11], spacing_mm)
    assert flat["hd95_mm"] == 0.0
    assert measure(mask[:, 4:6, 8:12], truth[:, 4:6, 8:12], spacing_mm)["iou"] == pytest.approx(3 / 4)


def test_summary_by_hand():
    rows = [
        {"case": "a", "iou": 0.8, "dice": 0.9, "hd95_mm": 2.0, "surface_dice": 0.7, "estimated_iou": 0.6, "seeds": 4,
         "iou network": 0.7, "dice network": 0.8, "iou 0": 0.5, "dice 0": 0.6, "iou 10": 0.8, "dice 10": 0.8},
        {"case": "b", "iou": 0.6, "dice": 0.7, "hd95_mm": 4.0, "surface_dice": 0.5, "estimated_iou": 0.5, "seeds": 6,
         "iou network": 0.6, "dice network": 0.7, "iou 0": 0.3, "dice 0": 0.4, "iou 10": 0.6, "dice 10": 0.6},
        {"case": "c", "iou": 0.7, "dice": 0.8, "hd95_mm": 3.0, "surface_dice": 0.6, "estimated_iou": 0.55, "seeds": 5,
         "iou network": 0.8, "dice network": 0.9, "iou 0": 0.4, "dice 0": 0.5, "iou 10": 0.7, "dice 10": 0.7},
    ]  # fmt: skip
    summary = summarise(rows)
    assert summary["methods"]["agent"]["hd95_mm"]["value"] == 3.0
    assert summary["agent_gain"]["0 seeds"] == {"value": 0.3, "low": 0.3, "high": 0.3}
    assert summary["agent_gain"]["network"]["value"] == 0.0
    assert summary["agent_gain"]["network"]["low"] < 0
    assert summary["dice_area"]["value"] == pytest.approx(0.6)
    assert summary["quality_rank"] == 1.0
    assert summary["seeds"] == 5.0


def test_simulated_clicks_are_a_users():
    image, truth = bright_image((40, 36, 30))
    mask = MetaTensor(truth[None], affine=image.affine)
    distance = ndimage.distance_transform_edt(~truth.numpy())
    depth = ndimage.distance_transform_edt(truth.numpy(), sampling=image.affine[:3, :3].norm(dim=0).numpy())
    for variant in ("inner", "random"):
        made = [simulate_seeds(image, mask, variant=variant, generator=np.random.default_rng(n)) for n in (0, 0, 1)]
        assert torch.equal(made[0].position_ras, made[1].position_ras)
        assert not torch.equal(made[0].position_ras, made[2].position_ras)
        assert made[0].foreground.tolist() == [True, False]
        inner, outer = (tuple(v) for v in seed_voxels(made[0], image).tolist())
        assert truth[inner]
        assert 5 <= distance[outer] <= 10
        if variant == "inner":
            assert depth[inner] == depth.max()
    data = {"case": "a", "image": image, "label": mask, "seeds": make_seeds([(0, 0, 0)], [True])}
    assert SimulateSeedsd()(data)["seeds"] is data["seeds"]  # a user's own clicks are kept
    assert not len(SimulateSeedsd(variant="none")(data | {"seeds": make_seeds()})["seeds"].foreground)
    with pytest.raises(InputError, match="clicks are 'outer'"):
        SimulateSeedsd(variant="outer")


def test_estimated_dice():
    assert Segmentation(MetaTensor(torch.zeros(1, 2, 2, 2)), make_seeds(), 0, 0.5).dice == pytest.approx(2 / 3)
