"""Pictures, volumes and annotations: what is read, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from medrl.data.box_cases import BoxCases, pad_boxes
from medrl.data.box_files import (
    find_images,
    load_box_cases,
    read_box_dataset,
    read_coco,
    read_picture,
    read_small,
    read_voc,
    reduce_picture,
    reduce_volume,
)
from medrl.data.box_phantoms import write_box_pictures
from medrl.data.phantoms import random_affine
from medrl.data.write import write_image
from medrl.types import InputError


def draw(path, size=(40, 30), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(1, 255, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def voc(path, boxes, size=(40, 30), name="a.png"):
    objects = "".join(
        f"<object><name>{kind}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax>"
        f"<ymax>{b[3]}</ymax></bndbox></object>"
        for kind, b in boxes
    )
    path.write_text(
        f"<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"</size>{objects}</annotation>"
    )
    return path


def test_pictures_become_small_and_boxes_map_exactly(tmp_path):
    pixels = draw(tmp_path / "a.png", (40, 30))
    small, whole = read_small(tmp_path / "a.png", longest=20, channels=3)
    assert np.array_equal(whole, pixels)
    assert small.image.shape == (3, 15, 20)
    assert small.scale.tolist() == [2, 2]
    expected = pixels.reshape(15, 2, 20, 2, 3).mean((1, 3)).round().clip(1)
    assert np.abs(small.image.movedim(0, -1).numpy() - expected).max() <= 1  # ties
    box = torch.tensor([[7.0, 5, 33, 21]], dtype=torch.float64)
    cases = BoxCases(small.image[None], small.from_file(box)[None], scale=small.scale[None])
    torch.testing.assert_close(cases.in_file(torch.tensor([0]), cases.boxes[0]), box.float())
    uneven, _ = read_small(tmp_path / "a.png", longest=17, channels=1)
    assert uneven.image.shape == (1, 13, 17)
    torch.testing.assert_close(uneven.scale, torch.tensor([40 / 17, 30 / 13], dtype=torch.float64))


def test_grey_and_colours_fit_the_network():
    grey = np.full((4, 6, 1), 77, np.uint8)
    assert (reduce_picture(grey, longest=9, channels=3).image == 77).all()
    assert reduce_picture(grey, longest=9, channels=3).image.shape == (3, 4, 6)  # not enlarged
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 200
    assert (reduce_picture(red, longest=9, channels=1).image == 60).all()
    assert reduce_picture(np.zeros((2, 2, 1), np.uint8), longest=9, channels=1).image.min() == 1  # 0 is outside


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "I;16", "CMYK"])
def test_other_modes_are_refused(mode, tmp_path):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (8, 8)).save(path)
    with pytest.raises(InputError, match=rf"a\.(png|jpg): has the mode {mode}; expected 8-bit grey"):
        read_picture(path)


def test_broken_pictures_are_refused(tmp_path):
    draw(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("text.png", b"hello"), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            read_picture(tmp_path / name)
    with pytest.raises(InputError, match=r"gone.png: no such file"):
        read_picture(tmp_path / "gone.png")
    Image.new("L", (8, 8)).save(tmp_path / "flat.png")
    with pytest.raises(InputError, match=r"flat.png: every pixel has the same value"):
        read_picture(tmp_path / "flat.png")


def test_images_of_a_folder(tmp_path):
    draw(tmp_path / "b.png")
    draw(tmp_path / "a.jpg")
    assert list(find_images(tmp_path)) == ["a", "b"]
    assert list(find_images(tmp_path / "a.jpg")) == ["a"]
    draw(tmp_path / "b.jpg")
    with pytest.raises(InputError, match=r"b.jpg and b.png: two pictures with one case id"):
        find_images(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        find_images(tmp_path / "none")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 5, 50, 20), "reaches out of the image of 40 x 30"), ((-1, 5, 10, 20), "reaches out"),
        ((20, 5, 10, 20), "empty or inverted"), ((5, 5, 5, 20), "empty or inverted"), ((5, "nan", 9, 20), "not finite"),
    ],
)  # fmt: skip
def test_wrong_boxes_are_refused(box, reason, tmp_path):
    path = voc(tmp_path / "a.xml", [("cell", (1, 2, 10, 12)), ("cell", box)])
    with pytest.raises(InputError, match=reason) as caught:
        read_voc(path)
    assert str(caught.value).startswith("a.xml: ")
    assert "\n" not in str(caught.value)


def test_voc(tmp_path):
    found = read_voc(voc(tmp_path / "a.xml", [("cell", (1, 2, 10, 12)), ("other", (1, 2, 10, 12))]))
    assert found == {
        "image": "a.png", "size": (40, 30), "boxes": [("cell", (1, 2, 10, 12)), ("other", (1, 2, 10, 12))],
    }  # fmt: skip
    with pytest.raises(InputError, match="is there twice"):
        read_voc(voc(tmp_path / "b.xml", [("cell", (1, 2, 10, 12))] * 2))
    (tmp_path / "c.xml").write_text("<annotation><size>")
    with pytest.raises(InputError, match="cannot be read as VOC"):
        read_voc(tmp_path / "c.xml")


def test_coco(tmp_path):
    document = {
        "images": [{"id": 3, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"image_id": 3, "category_id": 1, "bbox": [1, 2, 9, 10]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert read_coco(tmp_path / "a.json")[0]["boxes"] == [("cell", (1, 2, 10, 12))]
    document["annotations"][0]["bbox"] = [35, 2, 9, 10]
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"a.json, a.png: box 35 2 44 12 reaches out"):
        read_coco(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match="cannot be read as COCO"):
        read_coco(tmp_path / "a.json")


def test_a_data_set_of_pictures(tmp_path):
    write_box_pictures(tmp_path, 8, np.random.default_rng(0), side=32, validation=0.25, test=0.25)
    entries = read_box_dataset(tmp_path, "training")
    cases = load_box_cases(entries, longest=32)
    assert len(cases) == 4
    assert cases.names == tuple(entry["case"] for entry in entries)
    for row, entry in enumerate(entries):
        torch.testing.assert_close(cases.boxes[row][cases.present[row]].double(), entry["boxes"].reshape(-1, 4))
    document = json.loads((tmp_path / "dataset.json").read_text())
    document["training"][0]["boxes"] = [{"category": "target", "bbox": [20, 20, 20, 5]}]
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"picture_\d+.png: box 20 20 40 25 reaches out of the image of 32 x 32"):
        load_box_cases(read_box_dataset(tmp_path, "training"), longest=32)
    document["training"][0]["boxes"] = [{"category": "target"}]
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="needs boxes of category and bbox"):
        read_box_dataset(tmp_path, "training")
    with pytest.raises(InputError, match="'cat' is not one of its classes"):
        read_box_dataset(tmp_path, "training", category="cat")


def test_pictures_of_several_sizes_are_padded(tmp_path):
    draw(tmp_path / "a.png", (40, 20))
    draw(tmp_path / "b.png", (20, 40))
    entries = [{"image": tmp_path / f"{n}.png", "case": n, "boxes": torch.zeros(0)} for n in "ab"]
    cases = load_box_cases(entries, longest=20)
    assert cases.images.shape == (2, 1, 20, 20)
    assert cases.size.tolist() == [[20, 10], [10, 20]]
    assert cases.images[0, :, 10:].max() == 0
    with pytest.raises(InputError, match="several sizes"):
        cases.mirrored()


def test_storage_of_a_volume_does_not_matter(tmp_path):
    generator = np.random.default_rng(0)
    volume = np.full((20, 24, 16), 20.0, np.float32)
    volume[4:12, 6:18, 3:9] = 200
    matrix = np.diag([2.0, 2.0, 3.0, 1.0])
    matrix[:3, 3] = (-10, 5, 30)
    flipped = matrix.copy()
    flipped[:3, 3] += matrix[:3, 0] * 19
    flipped[:3, 0] *= -1
    turned = matrix[:, [1, 0, 2, 3]]
    images = []
    for name, array, affine in (
        ("a.nii.gz", volume, matrix), ("b.nii.gz", volume[::-1], flipped), ("c.mha", volume.swapaxes(0, 1), turned),
    ):  # fmt: skip
        write_image(tmp_path / name, np.ascontiguousarray(array), affine)
        images.append(read_small(tmp_path / name, longest=16)[0])
    for other in images[1:]:
        assert (images[0].image.int() - other.image.int()).abs().max() <= 1
        torch.testing.assert_close(images[0].origin, other.origin, atol=1e-3, rtol=0)
    low = torch.tensor([-10 + 4 * 2 - 1, 5 + 6 * 2 - 1, 30 + 3 * 3 - 1.5])
    truth = torch.cat([low, low + torch.tensor([16.0, 24, 18])])
    bright = images[0].image[0] > 128
    for axis in range(3):
        found = bright.any(dim=tuple(n for n in range(3) if n != axis)).nonzero()[:, 0]
        low = images[0].origin[axis] + found.min() * images[0].scale[axis]
        high = images[0].origin[axis] + (found.max() + 1) * images[0].scale[axis]
        assert abs(float(low - truth[axis])) < 3.1
        assert abs(float(high - truth[3 + axis])) < 3.1
    oblique = random_affine(generator, (2.0, 2.0, 3.0))
    small = reduce_volume(torch.from_numpy(volume), torch.from_numpy(oblique), longest=16)
    assert max(small.image.shape) == 16
    corner = torch.from_numpy(oblique[:3, :3] @ (np.array([8, 12, 6]) - 0.5) + oblique[:3, 3])
    inside = ((corner - small.origin) / small.scale).long()
    assert int(small.image[0, inside[0], inside[1], inside[2]]) > 128


def test_cases_check_their_boxes():
    images = torch.ones(1, 1, 10, 20, dtype=torch.uint8)
    assert BoxCases(images, torch.tensor([[[0.0, 0, 20, 10]]])).size.tolist() == [[20, 10]]
    for wrong in ([0.0, 0, 20, 11], [5.0, 5, 5, 8], [8.0, 5, 2, 8], [-1.0, 0, 3, 3]):
        with pytest.raises(InputError, match="0: a box is empty, inverted or outside"):
            BoxCases(images, torch.tensor([[wrong]]))
        assert len(BoxCases(images, torch.tensor([[wrong]]), torch.tensor([[False]]))) == 1
    with pytest.raises(InputError, match="expected"):
        BoxCases(images.float())


def test_mirrors():
    images = torch.arange(1, 7, dtype=torch.uint8).reshape(1, 1, 2, 3)
    cases = BoxCases(images, torch.tensor([[[0.0, 0, 1, 2]]])).mirrored()
    assert cases.images[1, 0].tolist() == [[3, 2, 1], [6, 5, 4]]
    assert cases.boxes[:, 0].tolist() == [[0, 0, 1, 2], [2, 0, 3, 2], [0, 0, 1, 2], [2, 0, 3, 2]]
    assert cases.images[2, 0].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert len(cases.select([3, 0])) == 2
    assert cases.select([3]).images[0, 0].tolist() == [[6, 5, 4], [3, 2, 1]]


def test_padding():
    boxes, present = pad_boxes([torch.zeros(0, 4), torch.ones(2, 4)], 2)
    assert present.tolist() == [[False, False], [True, True]]
    assert boxes.shape == (2, 2, 4)
    assert pad_boxes([], 3)[0].shape == (0, 1, 6)
