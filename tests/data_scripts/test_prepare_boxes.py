"""Preparation of VOC and COCO boxes on tiny folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medrl.data.box_files import load_box_cases, read_box_dataset
from medrl.types import InputError


@pytest.fixture
def script(load_script):
    return load_script("prepare_boxes")


def make(folder, count=8, size=(40, 30), xml=True):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(1, 255, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
        if xml:
            boxes = "".join(
                f"<object><name>{kind}</name><bndbox><xmin>{2 + number}</xmin><ymin>3</ymin><xmax>{20 + number}</xmax>"
                "<ymax>25</ymax></bndbox></object>"
                for kind in ("cell", "other")[: 1 + number % 2]
            )
            (folder / f"p{number}.xml").write_text(
                f"<annotation><filename>p{number}.png</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
                f"</size>{boxes}</annotation>"
            )
    return folder


def run(script, folder, output, *more):
    path = script.main(["--input", str(folder), "--output", str(output), "--category", "cell", *more])
    return json.loads(path.read_text())


def test_voc(script, tmp_path):
    document = run(script, make(tmp_path / "in"), tmp_path / "out", "--validation", "0.25", "--test", "0.25")
    assert [len(document[name]) for name in ("training", "validation", "test")] == [4, 2, 2]
    names = [Path(entry["image"]).name for part in ("training", "validation", "test") for entry in document[part]]
    assert sorted(names) == [f"p{n}.png" for n in range(8)]
    cases = load_box_cases(read_box_dataset(tmp_path / "out", "training"), longest=20, channels=3)
    for row, name in enumerate(cases.names):
        number = int(name[1:])
        assert cases.boxes[row, 0].tolist() == [1 + number / 2, 1.5, 10 + number / 2, 12.5]
    again = run(script, tmp_path / "in", tmp_path / "other", "--validation", "0.25", "--test", "0.25")
    assert [Path(e["image"]).name for e in again["test"]] == [Path(e["image"]).name for e in document["test"]]


def test_coco(script, tmp_path):
    make(tmp_path / "in", xml=False)
    document = {
        "images": [{"id": n, "file_name": f"p{n}.png", "width": 40, "height": 30} for n in range(8)],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [{"image_id": 2, "category_id": 7, "bbox": [1, 2, 10, 11]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    made = run(script, tmp_path / "in", tmp_path / "out", "--coco", str(tmp_path / "coco.json"))
    boxes = [entry["boxes"] for part in ("training", "validation", "test") for entry in made[part] if entry["boxes"]]
    assert boxes == [[{"category": "cell", "bbox": [1, 2, 10, 11]}]]


def test_refusals(script, tmp_path):
    make(tmp_path / "in")
    with pytest.raises(InputError, match="no picture has a box of cat; expected one of cell, other"):
        script.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--category", "cat"])
    Image.new("RGB", (41, 30), "red").save(tmp_path / "in/p3.png")
    with pytest.raises(InputError, match=r"p3.png: every pixel has the same value"):
        run(script, tmp_path / "in", tmp_path / "out")
    pixels = np.random.default_rng(0).integers(0, 255, (30, 41, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in/p3.png")
    with pytest.raises(InputError, match=r"p3.png: has 41 x 30 pixels, its annotation says 40 x 30"):
        run(script, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/p3.xml").unlink()
    with pytest.raises(InputError, match=r"p3.png: has no annotation; expected p3.xml"):
        run(script, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/p3.png").unlink()
    (tmp_path / "in/p5.png").unlink()
    with pytest.raises(InputError, match=r"p5.xml: its picture is missing"):
        run(script, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no VOC annotation"):
        run(script, tmp_path / "empty", tmp_path / "out")
