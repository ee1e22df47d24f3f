"""Pictures of a cut video: a contact sheet, and an animation of boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from medrl.data.videos import palette
from medrl.data.write import whole_file

SHEET = 8  # frames of a contact sheet
WIDEST = 1600  # pixels of a contact sheet


def paint(
    frame: np.ndarray, labels: np.ndarray, boxes: np.ndarray, contexts: np.ndarray, values: Sequence[int]
) -> np.ndarray:
    """A frame (H, W, 3) uint8 with its masks tinted, object boxes (K, 4) in their colour, context boxes in white."""
    colours = palette()
    picture = frame.astype(np.float32)
    marked = labels > 0
    picture[marked] = 0.55 * picture[marked] + 0.45 * colours[labels[marked]]
    for box, context, value in zip(boxes, contexts, values, strict=True):
        _outline(picture, context, (255, 255, 255))
        _outline(picture, box, colours[value])
    return picture.clip(0, 255).astype(np.uint8)


def painted(frames: Tensor, labels: Tensor, boxes: Tensor, contexts: Tensor, values: Sequence[int]) -> list[np.ndarray]:
    """All frames (T, 3, H, W) of a video; boxes and context boxes (K, T, 4) in its pixels."""
    parts = zip(
        frames.permute(0, 2, 3, 1).numpy(), labels.numpy(), boxes.transpose(0, 1).numpy(),
        contexts.transpose(0, 1).numpy(), strict=True,
    )  # fmt: skip
    return [paint(*part, values) for part in parts]


def write_sheet(path: Path | str, pictures: Sequence[np.ndarray]) -> None:
    """Write eight frames of a video, evenly spread, in two rows as a PNG file."""
    from PIL import Image

    chosen = [pictures[n] for n in np.linspace(0, len(pictures) - 1, SHEET).round().astype(int)]
    half = SHEET // 2
    sheet = np.concatenate([np.concatenate(chosen[k : k + half], 1) for k in (0, half)])
    image = Image.fromarray(sheet)
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)))
    with whole_file(path) as part:
        image.save(part)


def write_animation(path: Path | str, pictures: Sequence[np.ndarray], *, seconds: float = 0.15) -> None:
    """Write an animated GIF file."""
    from PIL import Image

    images = [Image.fromarray(picture).quantize(128) for picture in pictures]
    with whole_file(path) as part:
        images[0].save(part, save_all=True, append_images=images[1:], duration=round(1000 * seconds), loop=0)


def _outline(picture: np.ndarray, box: np.ndarray, colour: Sequence[int]) -> None:
    height, width = picture.shape[:2]
    left, top, right, bottom = (round(float(n)) for n in box)
    x = slice(max(0, left), max(0, min(width, right)))
    y = slice(max(0, top), max(0, min(height, bottom)))
    for row in (top, bottom - 1):
        if 0 <= row < height:
            picture[row, x] = colour
    for column in (left, right - 1):
        if 0 <= column < width:
            picture[y, column] = colour
