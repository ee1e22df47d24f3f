"""Videos as folders of frames, masks as palette PNG files: reading with checks, and writing.

A sequence is a folder of frames, ``<number>.jpg`` or ``<number>.png``, numbered without a gap, be it in ones or in
twos.  The object is given by a mask named as the first frame, ``<number>.png`` beside JPEG frames or
``masks/<number>.png``, or by ``box.txt`` with ``x,y,width,height`` in pixels of the first frame.  In a mask 0 is
background and every other value is an object; 0 and 255 alone are one object.  Where all frames have a mask, these are
the truth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medrl.data.video_cases import Video
from medrl.data.write import whole_file, write_json
from medrl.types import InputError

FRAMES = (".jpg", ".jpeg", ".png")
MASKS = "masks"  # folder of masks inside a sequence's
BOX = "box.txt"
MOST = 20  # objects a mask; more values are a picture, not a mask
DATASET = "dataset.json"


class GivenVideo(NamedTuple):
    """A video and what is known of its objects."""

    name: str
    files: list[Path]  # of the frames
    frames: Tensor  # (T, 3, H, W) uint8
    objects: list[int]  # their values in the mask
    masks: Tensor | None  # (objects, H, W) bool in the first frame; None where a box was given
    box: Tensor | None  # (1, 4): low corner, high corner in pixels


def find_sequences(dataset_dir: Path | str) -> dict[str, Path]:
    """Folders of a folder by name, or the folder itself if it holds frames; InputError if there is none."""
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(f"{folder.name} is not a folder; expected one with a folder of frames a video")
    if any(path.suffix.lower() in FRAMES for path in folder.iterdir()):
        return {folder.resolve().name: folder}
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if not found:
        raise InputError(f"{folder.name} holds no video; expected a folder of frames (.jpg or .png) for each")
    return found


def frame_files(folder: Path) -> list[Path]:
    """Frames in the order of their numbers; InputError where there are none, or a number is missing."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in FRAMES and not path.name.startswith(".")]
    if any(path.suffix.lower() != ".png" for path in files):  # then the PNG files beside them are masks
        files = [path for path in files if path.suffix.lower() != ".png"]
    numbers: dict[int, Path] = {}
    for path in sorted(files):
        digits = re.search(r"(\d+)$", path.stem)
        if digits is None:
            raise InputError(f"{folder.name}/{path.name}: a frame without a number; name frames 00000, 00001 and so on")
        number = int(digits[1])
        if number in numbers:
            raise InputError(f"{folder.name}/{path.name}: {numbers[number].name} has the same number; keep one of them")
        numbers[number] = path
    if len(numbers) < 2:
        raise InputError(f"{folder.name}: {len(numbers)} frames found; expected two or more .jpg or .png files")
    order = sorted(numbers)
    stride = min(after - before for before, after in pairwise(order))
    for before, after in pairwise(order):
        if after - before != stride:
            lost = f"{before + stride:0{len(numbers[before].stem)}d}"
            raise InputError(
                f"{folder.name}: frame {lost} is missing between {numbers[before].name} and {numbers[after].name}; "
                "add it, or cut the video there"
            )
    return [numbers[number] for number in order]


def read_frames(files: Sequence[Path]) -> Tensor:
    """Frames (T, 3, H, W) uint8; InputError for one that cannot be read or has another size than the first."""
    frames: list[np.ndarray] = []
    for path in files:
        frame = _pixels(path, "RGB")
        if frames and frame.shape != frames[0].shape:
            raise InputError(
                f"{_name(path)} is {frame.shape[1]} x {frame.shape[0]}, but {files[0].name} is "
                f"{frames[0].shape[1]} x {frames[0].shape[0]}; the frames of a video must have one size"
            )
        frames.append(frame)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def read_labels(path: Path, size: Sequence[int]) -> Tensor:
    """Values (H, W) uint8 of a mask; InputError unless it is of ``size`` (H, W) and one of whole objects."""
    labels = _pixels(path, None)
    if labels.ndim != 2:
        raise InputError(f"{_name(path)} has colours; expected a mask with a palette or of grey values")
    if tuple(labels.shape) != tuple(size):
        raise InputError(
            f"{_name(path)} is {labels.shape[1]} x {labels.shape[0]}, but the frames are {size[1]} x {size[0]}; "
            "draw the mask on a frame"
        )
    values = np.unique(labels)
    if len(values) > MOST + 1:
        raise InputError(
            f"{_name(path)} has {len(values)} values; expected 0 and 255, or 0 and at most {MOST} object numbers"
        )
    return torch.from_numpy(labels.astype(np.uint8))


def read_sequence(folder: Path | str) -> GivenVideo:
    """A video with the objects that are given in its first frame, every mask value one."""
    folder = Path(folder)
    files = frame_files(folder)
    path = mask_file(files[0])
    box_file = folder / BOX
    if path is None and not box_file.is_file():
        raise InputError(
            f"{folder.name}: no mask of the first frame; expected {files[0].stem}.png"
            f"{f' in {MASKS}/' if files[0].suffix.lower() == '.png' else ''}, or {BOX}"
        )
    frames = read_frames(files)
    size = frames.shape[2:]
    if path is None:
        return GivenVideo(folder.name, files, frames, [1], None, _read_box(box_file, size))
    labels = read_labels(path, size)
    objects = [int(value) for value in labels.unique() if value]
    if not objects:
        raise InputError(f"{_name(path)} is empty; mark the object in the first frame")
    masks = torch.stack([labels == value for value in objects])
    return GivenVideo(folder.name, files, frames, [1] if objects == [255] else objects, masks, None)


def read_truth(folder: Path | str) -> Tensor:
    """True values (T, H, W) uint8 of all frames, 255 alone as 1; InputError where one has no mask."""
    files = frame_files(Path(folder))
    paths = [mask_file(path) for path in files]
    for file, path in zip(files, paths, strict=True):
        if path is None:
            raise InputError(f"{_name(file)} has no mask; training and evaluation need one for every frame")
    size = read_frames(files[:1]).shape[2:]
    labels = torch.stack([read_labels(path, size) for path in paths if path is not None])
    return (labels > 0).to(torch.uint8) if set(labels.unique().tolist()) <= {0, 255} else labels


def read_videos(folders: Sequence[Path]) -> list[Video]:
    """Videos with the true masks of all frames; one for each object of the first frame."""
    videos = []
    for folder in folders:
        given, truth = read_sequence(folder), read_truth(folder)
        for value in given.objects:
            name = given.name if len(given.objects) == 1 else f"{given.name}_{value}"
            videos.append(Video(name, given.frames, truth == value))
    return videos


def mask_file(frame: Path) -> Path | None:
    """The mask that belongs to a frame, or None."""
    beside = frame.with_suffix(".png")
    for path in (frame.parent / MASKS / beside.name, beside):
        if path.is_file() and path != frame:
            return path
    return None


def write_labels(path: Path | str, labels: np.ndarray) -> None:
    """Write a mask (H, W) uint8 as a PNG file with the palette of PASCAL VOC and DAVIS."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8)).convert("P")
    image.putpalette(palette().ravel().tolist())
    with whole_file(path) as part:
        image.save(part)


def palette() -> np.ndarray:
    """Colours (256, 3) uint8: bits 0, 1, 2 of a value, then 3, 4, 5 ... become the high bits of red, green, blue."""
    value, colours = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((value >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def write_video(folder: Path | str, video: Video) -> None:
    """Write the frames as JPEG files, and their masks beside them."""
    from PIL import Image

    for number, (frame, mask) in enumerate(zip(video.frames, video.masks, strict=True)):
        path = Path(folder) / f"{number:05d}.jpg"
        with whole_file(path) as part:
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(part, quality=95)
        write_labels(path.with_suffix(".png"), mask.numpy().astype(np.uint8))


def write_dataset_of_videos(
    folder: Path | str, names: Sequence[str], *, validation: float = 0.2, test: float = 0.2
) -> Path:
    """Write dataset.json with the lists training, validation and test of names of folders beside it."""
    ends = [round(len(names) * (1 - validation - test)), round(len(names) * (1 - test))]
    lists = {"training": names[: ends[0]], "validation": names[ends[0] : ends[1]], "test": names[ends[1] :]}
    write_json(Path(folder) / DATASET, {key: list(value) for key, value in lists.items()})
    return Path(folder) / DATASET


def read_dataset_of_videos(dataset_dir: Path | str, section: str) -> list[Path]:
    """Folders of one list of dataset.json; without that file all sequences; InputError if there is none."""
    path = Path(dataset_dir) / DATASET
    if not path.is_file():
        return list(find_sequences(dataset_dir).values())
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = list(document[section])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{DATASET}: expected JSON with a list {section} of names of folders") from None
    for name in names:
        if not (path.parent / str(name)).is_dir():
            raise InputError(f"{DATASET}: {section} names {name}, which is not a folder beside it")
    if not names:
        raise InputError(f"{DATASET}: section {section} is empty")
    return [path.parent / str(name) for name in names]


def _read_box(path: Path, size: Sequence[int]) -> Tensor:
    try:
        x, y, width, height = (float(n) for n in path.read_text("utf-8").splitlines()[0].replace(",", " ").split())
    except (OSError, ValueError, IndexError):
        raise InputError(f"{_name(path)}: expected one line x,y,width,height in pixels of the first frame") from None
    if not (width > 0 and height > 0 and x + width > 0 and y + height > 0 and x < size[1] and y < size[0]):
        raise InputError(f"{_name(path)}: the box is empty or outside the {size[1]} x {size[0]} frame")
    return torch.tensor([[x, y, x + width, y + height]])


def _pixels(path: Path, mode: str | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if mode is None and image.mode not in ("P", "L", "1", "I;16", "I"):
                return np.asarray(image.convert("RGB"))
            return np.asarray(image if mode is None else image.convert(mode)).copy()
    except (OSError, ValueError, SyntaxError):
        raise InputError(f"{_name(path)} cannot be read as an image; it may be cut off: copy it again") from None


def _name(path: Path) -> str:
    """The file in its sequence."""
    parts = path.parts[-3:] if path.parent.name == MASKS else path.parts[-2:]
    return "/".join(parts)
