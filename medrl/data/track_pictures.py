"""Pictures of tracks: one frame with its boxes, or all of them as an animated GIF."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np

from medrl.data.tracks import Boxes, Video
from medrl.data.write import whole_file

CANVAS = (32, 34, 40)  # where there are no frames
TRAIL = 20  # frames of a path that are shown
GOLDEN = 0.618034  # turns of the colour circle from one identity to the next: neighbours differ


def colour_of(identity: int) -> tuple[int, int, int]:
    """The colour of an identity."""
    red, green, blue = colorsys.hsv_to_rgb((identity * GOLDEN) % 1, 0.75, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_frame(video: Video, tracks: Boxes, frame: int, *, width: int = 640) -> Any:
    """A PIL picture of a frame (from 0), at most ``width`` pixels wide: boxes, identities, and paths of late."""
    from PIL import Image, ImageDraw

    scale = min(1.0, width / video.size[0])
    size = tuple(max(1, round(side * scale)) for side in video.size)
    if video.pictures:
        with Image.open(video.pictures[frame]) as picture:
            image = picture.convert("RGB").resize(size)
    else:
        image = Image.new("RGB", size, CANVAS)
    pen = ImageDraw.Draw(image)
    for n in np.flatnonzero(tracks.frame == frame):
        identity = int(tracks.identity[n])
        colour = colour_of(identity)
        late = (tracks.identity == identity) & (tracks.frame <= frame) & (tracks.frame > frame - TRAIL)
        feet = [(float((b[0] + b[2]) / 2 * scale), float(b[3] * scale)) for b in tracks.box[late]]
        if len(feet) > 1:
            pen.line(feet, fill=colour, width=2)
        box = [float(value * scale) for value in tracks.box[n]]
        pen.rectangle(box, outline=colour, width=2)
        word = str(identity)
        spot = pen.textbbox((box[0] + 3, max(0.0, box[1] + 1)), word)
        pen.rectangle((spot[0] - 2, spot[1] - 1, spot[2] + 2, spot[3] + 1), fill=(0, 0, 0))
        pen.text((box[0] + 3, max(0.0, box[1] + 1)), word, fill=colour)
    pen.text((4, size[1] - 14), f"frame {frame + 1}", fill=(255, 255, 255))
    return image


def write_pictures(folder: Path | str, name: str, video: Video, tracks: Boxes, *, frames: int = 120) -> list[str]:
    """Write ``<name>.png``, first, middle and last frame in a row, and ``<name>.gif`` of at most so many frames.

    Returns the names of both files.
    """
    from PIL import Image

    folder = Path(folder)
    shown = sorted({0, video.frames // 2, video.frames - 1})
    parts = [draw_frame(video, tracks, frame, width=480) for frame in shown]
    sheet = Image.new("RGB", (sum(part.width for part in parts), parts[0].height))
    for number, part in enumerate(parts):
        sheet.paste(part, (sum(p.width for p in parts[:number]), 0))
    files = [f"{name}.png", f"{name}.gif"]
    with whole_file(folder / files[0]) as path:
        sheet.save(path)
    stride = -(-video.frames // frames)
    film = [draw_frame(video, tracks, frame, width=480).quantize(64) for frame in range(0, video.frames, stride)]
    with whole_file(folder / files[1]) as path:
        film[0].save(path, save_all=True, append_images=film[1:], duration=max(40, 40 * stride), loop=0)
    return files


def appearances(video: Video, frames: np.ndarray | None = None) -> np.ndarray | None:
    """(detections, 9) mean red, green and blue, 0 to 1, of the thirds of every detection; None without pictures.

    ``frames`` (T, H, W, 3) uint8 stand for the video's own pictures.
    """
    if frames is None and not video.pictures:
        return None
    width, height = video.size
    found = np.zeros((len(video.detections), 9), np.float32)
    for frame in np.unique(video.detections.frame):
        pixels = read_pixels(video, frame) if frames is None else frames[frame]
        for n in np.flatnonzero(video.detections.frame == frame):
            left, top, right, bottom = video.detections.box[n]
            left, right = (int(np.clip(x, 0, width)) for x in (np.floor(left), np.ceil(right)))
            edges = np.clip(np.round(np.linspace(top, bottom, 4)), 0, height).astype(int)
            for third in range(3):
                part = pixels[edges[third] : edges[third + 1], left:right]
                if part.size:
                    found[n, 3 * third : 3 * third + 3] = part.reshape(-1, 3).mean(0) / 255
    return found


def read_pixels(video: Video, frame: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 of a video that has some; frames count from 0."""
    from PIL import Image

    with Image.open(video.pictures[frame]) as picture:
        return np.asarray(picture.convert("RGB"))
