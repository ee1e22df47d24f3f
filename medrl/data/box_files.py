"""Pictures, volumes and annotated boxes: files <-> small images that an agent works on."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medrl.data.box_cases import BoxCases, pad_boxes
from medrl.data.dataset import read_dataset
from medrl.data.read import case_name, find_cases, read_image
from medrl.geometry.crops import crop_boxes
from medrl.geometry.grids import bounding_box, canonical
from medrl.types import InputError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
MODES = {"L": 1, "RGB": 3}


class SmallImage(NamedTuple):
    """An image as an agent sees it, and where its pixels lie in the file."""

    image: Tensor  # (C, Y, X) or (C, X, Y, Z) uint8, 1 to 255; 0 is outside
    scale: Tensor  # (D,) pixels of the file, or mm, a pixel; x first
    origin: Tensor  # (D,) of the low corner, in pixels of the file or RAS mm

    def from_file(self, box: Tensor) -> Tensor:
        """Boxes (..., 2 D) of the file in pixels of the small image."""
        return ((box.double() - self.origin.repeat(2)) / self.scale.repeat(2)).float()


def is_picture(path: Path | str) -> bool:
    """Whether a path is named like a picture."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def find_images(folder: Path | str) -> dict[str, Path]:
    """Pictures, or volumes, of a folder (or one file) by case id; InputError if there is none, or one id twice."""
    folder = Path(folder)
    if folder.is_file():
        return {_case_of(folder): folder}
    pictures = sorted(p for p in folder.iterdir() if is_picture(p)) if folder.is_dir() else []
    pictures = [path for path in pictures if not path.name.startswith(".")]
    if not pictures:
        return find_cases(folder)
    cases: dict[str, Path] = {}
    for path in pictures:
        first = cases.setdefault(_case_of(path), path)
        if first is not path:
            raise InputError(f"{first.name} and {path.name}: two pictures with one case id; rename or remove one")
    return cases


def _case_of(path: Path) -> str:
    return path.stem if is_picture(path) else case_name(path)


def read_picture(path: Path | str) -> np.ndarray:
    """Read a picture, (Y, X, C) uint8 with 1 or 3 channels.

    Raises InputError for a file that is missing, truncated or no picture, of another mode than 8-bit grey or RGB, or
    of one value only.
    """
    from PIL import Image, UnidentifiedImageError

    name = Path(path).name
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            pixels = np.array(picture) if mode in MODES else None
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        raise InputError(f"{name}: cannot be read; the file is truncated or no picture, export it again") from None
    if pixels is None:
        raise InputError(f"{name}: has the mode {mode}; expected 8-bit grey (L) or RGB, convert it first")
    if (pixels == pixels[0, 0]).all():
        raise InputError(f"{name}: every pixel has the same value; expected a picture, check the export")
    return pixels.reshape(*pixels.shape[:2], MODES[mode])


def reduce_picture(pixels: np.ndarray, *, longest: int, channels: int) -> SmallImage:
    """Average a picture (Y, X, C) to at most ``longest`` pixels a side, as grey or colours."""
    height, width = pixels.shape[:2]
    factor = max(1.0, max(height, width) / longest)
    sides = [max(1, round(n / factor)) for n in (width, height)]
    image = torch.from_numpy(pixels).movedim(-1, 0)[None]
    box = torch.tensor([[0.0, 0.0, float(width), float(height)]])
    if factor > 1:
        image = crop_boxes(image, torch.zeros(1), box, sides[::-1])
    image = image.float()
    if image.shape[1] > channels:
        image = (image * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    image = image.expand(-1, channels, -1, -1)[0].round().clamp(1, 255).to(torch.uint8)
    scale = torch.tensor([width / sides[0], height / sides[1]], dtype=torch.float64)
    return SmallImage(image.contiguous(), scale, torch.zeros(2, dtype=torch.float64))


def reduce_volume(
    volume: Tensor, ras_from_voxel: Tensor, *, longest: int, window: Sequence[float] | None = None
) -> SmallImage:
    """Resample a volume (X, Y, Z) along the patient's axes to at most ``longest`` voxels a side; ``origin`` in RAS mm.

    Flips, oblique and anisotropic grids give the same small volume.  ``window`` are the intensities of 1 and 255.
    """
    matrix = ras_from_voxel.double()
    low, high = bounding_box(matrix, tuple(volume.shape), torch.eye(4, dtype=torch.float64))
    spacing_mm = float((high - low).max()) / longest * (1 + 1e-9)
    grid, centre = canonical(volume, matrix, spacing_mm=spacing_mm, window=window, multiple=1)
    sides = torch.tensor(grid.shape, dtype=torch.float64)
    origin = centre[:3, 3] - sides / 2 * spacing_mm
    return SmallImage(grid[None], torch.full((3,), spacing_mm, dtype=torch.float64), origin)


def read_small(
    path: Path | str, *, longest: int, channels: int = 1, window: Sequence[float] | None = None
) -> tuple[SmallImage, Any]:
    """Read a picture or a volume as the agent sees it, and as it is ((Y, X, C) uint8, or a MetaTensor (1, X, Y, Z))."""
    if is_picture(path):
        pixels = read_picture(path)
        return reduce_picture(pixels, longest=longest, channels=channels), pixels
    image = read_image(path)
    volume = image.as_tensor()[0]
    return reduce_volume(volume, torch.as_tensor(image.affine), longest=longest, window=window), image


def check_boxes(boxes: Sequence[Sequence[float]], sides: Sequence[float] | None, name: str) -> Tensor:
    """Boxes (K, 2 D) of one image of ``sides`` pixels; InputError if one is empty, inverted, outside or there twice."""
    seen = set()
    for box in boxes:
        shown = " ".join(f"{number:g}" for number in box)
        dims = len(box) // 2
        if not all(map(math.isfinite, box)):
            raise InputError(f"{name}: box {shown} has a number that is not finite; correct the annotation")
        if any(box[n] >= box[dims + n] for n in range(dims)):
            raise InputError(f"{name}: box {shown} is empty or inverted; expected low corner before high corner")
        if sides is not None and (min(box[:dims]) < 0 or any(box[dims + n] > sides[n] for n in range(dims))):
            size = " x ".join(f"{n:g}" for n in sides)
            raise InputError(f"{name}: box {shown} reaches out of the image of {size} pixels; correct the annotation")
        if tuple(box) in seen:
            raise InputError(f"{name}: box {shown} is there twice; expected every object once")
        seen.add(tuple(box))
    return torch.tensor(list(boxes), dtype=torch.float64)


def read_voc(path: Path | str) -> dict[str, Any]:
    """Read a VOC annotation: ``{"image": name, "size": (w, h), "boxes": [(category, (x1, y1, x2, y2)), ...]}``.

    Corners are taken as they are.  Raises InputError for what is no VOC annotation, and for wrong boxes.
    """
    name = Path(path).name
    try:
        root = ElementTree.parse(path).getroot()
        size = tuple(int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        found = [
            (entry.findtext("name", "").strip(), tuple(
                float(entry.findtext(f"bndbox/{corner}", "")) for corner in ("xmin", "ymin", "xmax", "ymax")
            ))
            for entry in root.iter("object")
        ]  # fmt: skip
    except (ElementTree.ParseError, ValueError, OSError):
        raise InputError(f"{name}: cannot be read as VOC; expected a size and a bndbox of each object") from None
    for category in {category for category, _ in found}:
        check_boxes([box for kind, box in found if kind == category], size, name)
    return {"image": root.findtext("filename", "").strip(), "size": size, "boxes": found}


def read_coco(path: Path | str) -> list[dict[str, Any]]:
    """Read a COCO annotation file: what `read_voc` tells, an image each; InputError likewise."""
    name = Path(path).name
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        categories = {entry["id"]: str(entry["name"]) for entry in document["categories"]}
        images = {
            entry["id"]: {"image": str(entry["file_name"]), "size": (entry["width"], entry["height"]), "boxes": []}
            for entry in document["images"]
        }
        for entry in document["annotations"]:
            x, y, width, height = map(float, entry["bbox"])
            found = images[entry["image_id"]]["boxes"]
            found.append((categories[entry["category_id"]], (x, y, x + width, y + height)))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{name}: cannot be read as COCO; expected images, annotations and categories") from None
    for image in images.values():
        for category in {category for category, _ in image["boxes"]}:
            boxes = [box for kind, box in image["boxes"] if kind == category]
            check_boxes(boxes, image["size"], f"{name}, {image['image']}")
    return list(images.values())


def read_box_dataset(dataset_dir: Path | str, section: str, *, category: str | None = None) -> list[dict[str, Any]]:
    """The cases of a section of dataset.json: ``{"case", "image": Path, "boxes": (K, 2 D) float64, "category"}``.

    Boxes are of one category, by default the first of ``classes``: x1, y1, x2, y2 in pixels, or low and high corner in
    RAS mm.  The file holds ``{"image": path, "boxes": [{"category", "bbox": [x, y, w, h]} or {..., "bbox_mm"}]}``.

    Raises InputError as `read_dataset`, and for wrong boxes.
    """
    listed = read_dataset(dataset_dir, section, answer="label")
    document = json.loads((Path(dataset_dir) / "dataset.json").read_text(encoding="utf-8"))
    classes = document.get("classes") or []
    category = category or (classes[0] if classes else None)
    if category not in classes:
        raise InputError(f"dataset.json: category {category!r} is not one of its classes {classes}")
    entries = []
    for case, entry in zip(listed, document[section], strict=True):
        unit = "bbox" if is_picture(case["image"]) else "bbox_mm"
        try:
            boxes = [_corners(found[unit]) for found in entry["boxes"] if found["category"] == category]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"dataset.json: {case['image'].name} needs boxes of category and {unit}") from None
        if any(len(box) != (4 if unit == "bbox" else 6) for box in boxes):
            raise InputError(f"dataset.json: {case['image'].name} has a {unit} that is no corner and sides; correct it")
        checked = check_boxes(boxes, None, case["image"].name)
        entries.append({
            "case": _case_of(case["image"]), "image": case["image"], "boxes": checked, "category": category,
        })  # fmt: skip
    return entries


def _corners(box: Sequence[float]) -> tuple[float, ...]:
    """Low and high corner of a low corner and sides."""
    dims = len(box) // 2
    return (*map(float, box[:dims]), *(float(a) + float(b) for a, b in zip(box[:dims], box[dims:], strict=True)))


def load_box_cases(
    entries: Sequence[dict[str, Any]], *, longest: int, channels: int = 1, window: Sequence[float] | None = None
) -> BoxCases:
    """Read the cases of `read_box_dataset` into one `BoxCases`, padded to the largest; InputError for a bad file."""
    small, boxes = [], []
    for entry in entries:
        image, whole = read_small(entry["image"], longest=longest, channels=channels, window=window)
        dims = len(image.scale)
        found = entry["boxes"].reshape(-1, 2 * dims)
        if dims == 2:
            check_boxes(found.tolist(), whole.shape[1::-1], entry["image"].name)
        small.append(image)
        boxes.append(image.from_file(found))
    if len({len(image.scale) for image in small}) > 1:
        raise InputError("dataset.json: names pictures and volumes; expected one kind")
    shape = [max(image.image.shape[axis] for image in small) for axis in range(1, small[0].image.ndim)]
    canvas = torch.zeros(len(small), small[0].image.shape[0], *shape, dtype=torch.uint8)
    size = torch.zeros(len(small), len(shape))
    for row, image in enumerate(small):
        canvas[(row, slice(None), *(slice(0, n) for n in image.image.shape[1:]))] = image.image
        sides = list(image.image.shape[1:])
        size[row] = torch.tensor(sides if len(sides) == 3 else sides[::-1])
    answers, present = pad_boxes(boxes, len(shape))
    return BoxCases(
        canvas, answers, present, size=size, scale=torch.stack([x.scale for x in small]),
        origin=torch.stack([x.origin for x in small]), names=[entry["case"] for entry in entries],
    )  # fmt: skip
