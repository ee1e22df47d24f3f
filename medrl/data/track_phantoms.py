"""Procedural videos: boxes that cross and hide each other, seen by a detector that shakes, misses and dreams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medrl.data.textures import draw_coat, draw_wall, put
from medrl.data.tracks import Boxes, Video, write_boxes
from medrl.data.write import whole_file

JITTER = 0.10  # standard deviation of a detection's centre and log sides, in sides of the object
MISSED = 0.20  # share of the objects in sight that a frame's detections leave out
FALSE = 0.10  # false detections a true one
VARIED = (0.2, 1.4)  # of these three, where they vary
HIDDEN = 0.35  # with less of it in sight, an object is never detected
COLOURS = 9  # numbers of an appearance: red, green and blue of the upper, middle and lower third


@dataclass(frozen=True)
class Phantom:
    """A video whose detections know whose they are: ``video.detections.identity``, -1 of false ones."""

    video: Video
    appearance: np.ndarray  # (detections, 9) float32, 0 to 1: mean colours of the thirds of each
    colours: np.ndarray  # (objects, 9)
    visible: np.ndarray  # (truth boxes,) float32, share in sight
    pillars: np.ndarray  # (P, 2) left and right ends of what all objects pass behind


def draw_video(
    generator: np.random.Generator, *, name: str = "phantom", frames: tuple[int, int] = (30, 60),
    objects: tuple[int, int] = (4, 12), size: tuple[int, int] = (640, 360), varied: float = 0.0,
) -> Phantom:  # fmt: skip
    """A video of 4 to 12 objects that mostly meet in pairs; ranges hold both ends.

    With the chance ``varied`` its detector and its pace are its own: a camera is often faster, a detector better.
    """
    jitter, missed, dreams, pace = JITTER, MISSED, FALSE, 1.0
    if varied and generator.random() < varied:
        jitter, missed, dreams = (v * generator.uniform(*VARIED) for v in (jitter, missed, dreams))
        pace = generator.uniform(0.25, 1.0)
    length, count = (int(generator.integers(low, high + 1)) for low, high in (frames, objects))
    middle, sides = _walk(generator, length, count, size, pace)
    present = _present(generator, middle, size)
    pillars = _pillars(generator, size)
    box = np.concatenate([middle - sides / 2, middle + sides / 2], -1)  # (T, K, 4)
    visible = np.stack([_visible(box[t], present[t], pillars, size) for t in range(length)])
    colours = generator.uniform(0.1, 0.9, (count, COLOURS))
    rows, looks = [], []
    for t in range(length):
        for k in np.flatnonzero(present[t]):
            seen = visible[t, k]
            if seen < HIDDEN or generator.random() < (missed if seen > 0.6 else max(0.5, missed)):
                continue
            shake = jitter * (1.0 if seen > 0.6 else 1.5) * generator.standard_normal(4)
            score = generator.normal(0.85, 0.1) - 0.2 * (1 - seen)
            rows.append((t, k, _shaken(box[t, k], shake), np.clip(score, 0.05, 1)))
            behind = np.resize(generator.uniform(0.3, 0.7, 3), COLOURS)
            looks.append(seen * colours[k] + (1 - seen) * behind)
        for _ in range(generator.poisson(dreams * max(1, present[t].sum()) * (1 - missed))):
            near = np.flatnonzero(present[t])
            if len(near) and generator.random() < 0.4:
                like = generator.choice(near)
                turn = generator.uniform(0, 2 * np.pi)
                shift = generator.uniform(0.3, 0.8) * np.array([np.cos(turn), np.sin(turn), 0, 0])
                false = _shaken(box[t, like], np.concatenate([shift[:2], 0.2 * generator.standard_normal(2)]))
            else:
                high = generator.uniform(40, 110)
                place = generator.uniform(0, 1, 2) * size
                wide = high * generator.uniform(0.35, 0.6)
                half = np.array([wide, high]) / 2
                false = np.concatenate([place - half, place + half])
            rows.append((t, -1, false, np.clip(generator.normal(0.65, 0.15), 0.05, 1)))
            looks.append(np.resize(generator.uniform(0.3, 0.7, 3), COLOURS))
    keep = [n for n, row in enumerate(rows) if _inside(row[2], size)]
    order = np.array([keep[n] for n in generator.permutation(len(keep))], np.int64)
    order = order[np.argsort([rows[n][0] for n in order], kind="stable")]  # within a frame in no order
    detections = _boxes([rows[n] for n in order])
    look = np.array([looks[n] for n in order], np.float32).reshape(-1, COLOURS)
    look = np.clip(look + 0.05 * generator.standard_normal(look.shape), 0, 1).astype(np.float32)
    place = np.argwhere(present)
    truth = _boxes([(t, k, box[t, k], 1.0) for t, k in place])
    video = Video(name, length, size, detections, truth)
    return Phantom(video, look, colours, visible[present].astype(np.float32), pillars)


def draw_videos(count: int, seed: int, **options: object) -> list[Phantom]:
    """Videos that each have a generator of their own: the first ones do not depend on how many there are."""
    return [draw_video(np.random.default_rng([seed, n]), name=f"phantom_{n:03d}", **options) for n in range(count)]


def render(phantom: Phantom, seed: int = 0, *, varied: bool = False) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of a phantom: striped boxes before a noisy wall, behind pillars.

    ``varied``: walls, coats, outlines, pillars, light and grain are drawn, each video has its own.
    """
    generator, video = np.random.default_rng(seed), phantom.video
    if varied:
        return _render_varied(phantom, generator)
    width, height = video.size
    wall = 110 + 30 * np.linspace(0, 1, height)[:, None, None] + generator.normal(0, 8, (height, width, 3))
    frames = np.empty((video.frames, height, width, 3), np.uint8)
    for t in range(video.frames):
        picture = wall.copy()
        here = np.flatnonzero(video.truth.frame == t)
        for n in here[np.argsort(video.truth.box[here, 3])]:  # the nearer, the lower, the later
            left, top, right, bottom = np.round(video.truth.box[n]).astype(int)
            for third in range(3):
                low, high = (top + (bottom - top) * (third + i) // 3 for i in (0, 1))
                colour = 255 * phantom.colours[video.truth.identity[n], 3 * third : 3 * third + 3]
                picture[max(low, 0) : max(high, 0), max(left, 0) : max(right, 0)] = colour
        for left, right in phantom.pillars.astype(int):
            picture[:, max(left, 0) : max(right, 0)] = 70
        frames[t] = np.clip(picture, 0, 255)
    return frames


def write_phantoms(folder: Path | str, count: int, seed: int = 0, *, pictures: bool = False, **options: object) -> Path:
    """Write videos as MOTChallenge folders (det, gt, seqinfo.ini, and img1 with ``pictures``); returns the folder."""
    folder = Path(folder)
    for phantom in draw_videos(count, seed, **options):
        video = phantom.video
        detections, truth = video.detections, video.truth
        unknown = Boxes(detections.frame, detections.box, detections.score, np.full(len(detections), -1))
        write_boxes(folder / video.name / "det/det.txt", unknown)
        write_boxes(folder / video.name / "gt/gt.txt", Boxes(truth.frame, truth.box, truth.score, truth.identity + 1))
        lines = {"name": video.name, "imDir": "img1", "frameRate": 25, "seqLength": video.frames}
        lines |= {"imWidth": video.size[0], "imHeight": video.size[1], "imExt": ".jpg"}
        with whole_file(folder / video.name / "seqinfo.ini") as part:
            part.write_text("[Sequence]\n" + "".join(f"{k}={v}\n" for k, v in lines.items()), encoding="utf-8")
        if pictures:
            from PIL import Image

            for number, picture in enumerate(render(phantom), start=1):
                with whole_file(folder / video.name / f"img1/{number:06d}.jpg") as part:
                    Image.fromarray(picture).save(part, quality=90)
    return folder


def _render_varied(phantom: Phantom, generator: np.random.Generator) -> np.ndarray:
    video = phantom.video
    wall = draw_wall(generator, video.size).astype(np.float32)
    coats = [draw_coat(generator, colours) for colours in phantom.colours]
    posts = generator.uniform(20, 200, (len(phantom.pillars), 3))
    grain = generator.uniform(0, 8) * generator.standard_normal(wall.shape, np.float32)
    light = 1 + np.cumsum(generator.normal(0, generator.uniform(0, 0.02), (video.frames, 3)), 0)
    light = light.astype(np.float32)
    frames = np.empty((video.frames, *wall.shape), np.uint8)
    for t in range(video.frames):
        picture = wall.copy()
        here = np.flatnonzero(video.truth.frame == t)
        for n in here[np.argsort(video.truth.box[here, 3])]:
            put(picture, *coats[video.truth.identity[n]], video.truth.box[n])
        for (left, right), colour in zip(phantom.pillars.astype(int), posts, strict=True):
            picture[:, max(left, 0) : max(right, 0)] = colour
        shift = generator.integers(0, wall.shape[:2])  # the same grain elsewhere
        frames[t] = np.clip(light[t] * picture + np.roll(grain, shift, (0, 1)), 0, 255)
    return frames


def _walk(
    generator: np.random.Generator, length: int, count: int, size: tuple[int, int], rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Centres and sides (T, K, 2): smooth ways, of which those of a pair meet somewhere near the middle."""
    high = generator.uniform(45, 110, count)
    sides = np.stack([high * generator.uniform(0.35, 0.6, count), high], -1)
    grow = np.cumsum(generator.normal(0, 0.004, (length, count, 1)), 0)
    meet = generator.uniform(0.15, 0.85, count) * length
    where = generator.uniform(0.2, 0.8, (count, 2)) * size
    pairs = generator.permutation(count)
    for first, second in zip(pairs[::2], pairs[1::2], strict=False):
        if generator.random() < 0.75:
            meet[second] = meet[first] + generator.normal(0, 1.5)
            where[second] = where[first] + generator.normal(0, 0.1, 2) * sides[first]
            sides[second] = sides[first] * np.exp(generator.normal(0, 0.08, 2))  # alike, so that they may be confused
    turn = generator.choice([0, np.pi], count) + generator.normal(0, 0.5, count)
    speed = rate * generator.uniform(0.015, 0.08, count) * high
    ways = np.empty((length, count, 2))
    for k in range(count):
        bend = generator.normal(0, 0.02, length)
        bend += (generator.random(length) < 0.02) * generator.uniform(-1.2, 1.2, length)
        heading = turn[k] + np.cumsum(bend)
        pace = speed[k] * np.exp(np.cumsum(generator.normal(0, 0.04, length)))
        steps = pace[:, None] * np.stack([np.cos(heading), 0.5 * np.sin(heading)], -1)
        way = np.cumsum(steps, 0)
        middle = int(np.clip(meet[k], 0, length - 1))
        ways[:, k] = way - way[middle] + where[k]
    return ways, sides * np.exp(grow)


def _present(generator: np.random.Generator, middle: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, K) bool: from when an object enters the picture, or a door in it, until it leaves."""
    length, count = middle.shape[:2]
    inside = ((middle > 0) & (middle < size)).all(-1)
    present = np.zeros_like(inside)
    for k in range(count):
        times = np.flatnonzero(inside[:, k])
        if len(times) == 0:
            continue
        runs = np.split(times, np.flatnonzero(np.diff(times) > 1) + 1)
        first, last = max(runs, key=len)[[0, -1]]
        if generator.random() < 0.15:
            first = max(first, int(generator.integers(0, length // 2)))
        if generator.random() < 0.15:
            last = min(last, int(generator.integers(length // 2, length)))
        if last - first >= 4:
            present[first : last + 1, k] = True
    return present


def _pillars(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    wide = generator.uniform(20, 70, generator.integers(0, 3))
    left = generator.uniform(0, 1, len(wide)) * size[0]
    return np.stack([left, left + wide], -1)


def _visible(box: np.ndarray, present: np.ndarray, pillars: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K,) share of each box that neither a lower object nor a pillar hides, on a raster of 8 x 8 points."""
    at = (np.arange(8) + 0.5) / 8
    x = box[:, None, 0] + (box[:, 2] - box[:, 0])[:, None] * at  # (K, 8)
    y = box[:, None, 1] + (box[:, 3] - box[:, 1])[:, None] * at
    across = (x[:, None] > box[None, :, 0, None]) & (x[:, None] < box[None, :, 2, None])  # (K, others, 8)
    down = (y[:, None] > box[None, :, 1, None]) & (y[:, None] < box[None, :, 3, None])
    nearer = (box[None, :, 3] > box[:, None, 3]) & present[None]
    hidden = (across[..., :, None] & down[..., None, :] & nearer[..., None, None]).any(1)
    wall = ((x[:, :, None] > pillars[:, 0]) & (x[:, :, None] < pillars[:, 1])).any(-1) | (x < 0) | (x > size[0])
    hidden |= wall[:, :, None] | ((y < 0) | (y > size[1]))[:, None]
    return 1 - hidden.mean((1, 2))


def _shaken(box: np.ndarray, shake: np.ndarray) -> np.ndarray:
    """A box with another centre (in sides) and other log sides."""
    side = box[2:] - box[:2]
    middle = (box[2:] + box[:2]) / 2 + shake[:2] * side
    side = side * np.exp(shake[2:])
    return np.concatenate([middle - side / 2, middle + side / 2])


def _inside(box: np.ndarray, size: tuple[int, int]) -> bool:
    return bool((box[2:] > 1).all() and (box[:2] < np.array(size) - 1).all())


def _boxes(rows: Sequence[tuple[int, int, np.ndarray, float]]) -> Boxes:
    frame, identity, box, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Boxes(
        np.array(frame, np.int64), np.array(box, np.float32).reshape(-1, 4), np.array(score, np.float32),
        np.array(identity, np.int64),
    )  # fmt: skip
