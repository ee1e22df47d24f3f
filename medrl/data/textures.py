"""Random surfaces for procedural pictures: walls, and coats of objects that are plain, striped, checked or blotched."""

from __future__ import annotations

import numpy as np

CELLS = 48  # a coat's rows and columns; it is stretched over its object
ROUND = 0.6  # share of coats that leave the corners of their box free


def draw_wall(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float, 0 to 255: a smooth field of colours, often with boards or rectangles on it, and grain."""
    width, height = size
    bright, contrast = generator.uniform(50, 200), generator.uniform(10, 90)
    wall = _field(generator, (height, width), int(generator.integers(1, 9)))
    wall = bright + contrast * (wall - 0.5) * 2
    clutter = generator.random()
    if clutter < 0.25:  # boards
        count = int(generator.integers(3, 30))
        across = generator.random() < 0.5
        at = np.arange(width if across else height) * count // (width if across else height)
        shade = generator.normal(0, contrast / 2, (count, 1, 3))[at]
        wall += shade[None, :, 0] if across else shade
    elif clutter < 0.65:  # rectangles
        for _ in range(int(generator.integers(3, 25))):
            wide, high = generator.uniform(8, 90, 2).astype(int)
            left, top = (generator.uniform(0, 1, 2) * size).astype(int)
            wall[top : top + high, left : left + wide] = generator.uniform(0, 255, 3)
    return wall + generator.normal(0, generator.uniform(0, 12), wall.shape)


def draw_coat(generator: np.random.Generator, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A coat (S, S, 3) float, 0 to 255, in ``colours`` (9,), 0 to 1, and where it is opaque (S, S) bool."""
    palette = 255 * np.asarray(colours).reshape(3, 3)
    at = (np.arange(CELLS) + 0.5) / CELLS
    y, x = np.meshgrid(at, at, indexing="ij")
    count = int(generator.integers(2, 7))
    kind = int(generator.integers(6))
    if kind == 0:  # thirds
        coat = palette[(3 * y).astype(int)]
    elif kind == 1:  # plain
        coat = np.broadcast_to(palette[0], (CELLS, CELLS, 3)).copy()
    elif kind == 2:  # checks
        coat = palette[((count * x).astype(int) + (count * y).astype(int)) % 2]
    elif kind == 3:  # stripes
        coat = palette[(count * (x if generator.random() < 0.5 else y)).astype(int) % 3]
    elif kind == 4:  # from one colour to another
        share = (x if generator.random() < 0.5 else y)[..., None]
        coat = palette[0] * (1 - share) + palette[1] * share
    else:  # blotches
        blotch = _field(generator, (CELLS, CELLS), count)[..., :1]
        coat = np.where(blotch > 0.5, palette[0], palette[1])
    coat = coat + generator.normal(0, generator.uniform(0, 25), (CELLS, CELLS, 1))
    if generator.random() > ROUND:
        return coat, np.ones((CELLS, CELLS), bool)
    power = generator.uniform(2, 5)  # 2: an ellipse
    return coat, np.abs(2 * x - 1) ** power + np.abs(2 * y - 1) ** power <= 1


def put(picture: np.ndarray, coat: np.ndarray, opaque: np.ndarray, box: np.ndarray) -> None:
    """Stretch a coat over the whole pixels of a box of a picture (H, W, 3), in place."""
    left, top, right, bottom = np.round(box).astype(int)
    height, width = picture.shape[:2]
    rows, columns = slice(max(top, 0), max(0, min(bottom, height))), slice(max(left, 0), max(0, min(right, width)))
    y, x = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
    row, column = (y - top) * CELLS // max(1, bottom - top), (x - left) * CELLS // max(1, right - left)
    at = np.ix_(row, column)
    part = picture[rows, columns]
    part[opaque[at]] = coat[at][opaque[at]]


def _field(generator: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """(H, W, 3) float, 0 to 1: random colours of a coarse grid, interpolated."""
    values = generator.random((cells + 1, cells + 1, 3))
    for axis, count in enumerate(shape):
        place = np.arange(count) * cells / count
        low = place.astype(int)
        share = (place - low).reshape([-1 if n == axis else 1 for n in range(3)])
        values = np.take(values, low, axis) * (1 - share) + np.take(values, low + 1, axis) * share
    return values
