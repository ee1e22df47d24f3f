"""Videos with detections or truth: MOTChallenge files, ``seqinfo.ini`` and folders of frames <-> records.

A line of a file is frame, identity, left, top, width, height, score and up to three numbers more, all counted from 1;
inside, frames and pixels count from 0, and boxes are corners.
"""

from __future__ import annotations

import configparser
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medrl.data.write import whole_file
from medrl.types import InputError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
MOST_FRAMES = 100_000  # a later frame number is taken for a mistake
CLASS_COLUMN, VISIBLE_COLUMN, PEDESTRIAN = 7, 6, 1  # of a truth with nine columns, as in MOT16 and later
COLUMNS = range(7, 11)


@dataclass(frozen=True)
class Boxes:
    """N boxes of a video, by frame."""

    frame: np.ndarray  # (N,) int64, from 0, rising
    box: np.ndarray  # (N, 4) float32: left, top, right, bottom
    score: np.ndarray  # (N,) float32
    identity: np.ndarray  # (N,) int64; -1 of a detection

    def __len__(self) -> int:
        return len(self.frame)

    def kept(self, mask: np.ndarray) -> Boxes:
        """Some of them."""
        return Boxes(self.frame[mask], self.box[mask], self.score[mask], self.identity[mask])


@dataclass(frozen=True)
class Video:
    """A video's detections, and what else is known of it."""

    name: str
    frames: int
    size: tuple[int, int]  # width, height
    detections: Boxes
    truth: Boxes | None = None
    pictures: tuple[Path, ...] = ()  # one a frame, or none


def make_boxes(rows: Sequence[tuple[int, int, Sequence[float], float]]) -> Boxes:
    """Boxes of rows (frame, identity, corners, score), sorted by frame."""
    rows = sorted(rows, key=lambda row: row[0])
    return Boxes(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[3] for row in rows], np.float32),
        np.array([row[1] for row in rows], np.int64),
    )


def find_videos(folder: Path | str) -> dict[str, Path]:
    """Name -> folder of the videos in a folder, or of the folder itself if it is one; InputError if there is none."""
    folder = Path(folder)
    if _detections(folder).is_file():
        return {folder.resolve().name: folder}
    found = {path.name: path for path in sorted(folder.glob("*")) if path.is_dir() and _detections(path).is_file()}
    if not found:
        raise InputError(f"{folder.name}: no video found; expected <name>/det/det.txt (MOTChallenge detections)")
    return found


def read_video(folder: Path | str, *, truth: bool = False, last_frame: int = 0) -> Video:
    """Read a video: ``det/det.txt``, and if there, ``img1/``, ``seqinfo.ini`` and, if asked, ``gt/gt.txt``.

    ``last_frame`` (from 1) cuts a video short; 0 keeps it whole.

    Raises:
        InputError: what `read_boxes`, `read_information` and `find_pictures` refuse; a box outside the picture; frames
            without a picture beside others with one; no detection at all; no truth where it is asked for.
    """
    folder = Path(folder)
    path = _detections(folder)
    name = folder.resolve().name
    detections = read_boxes(path, last_frame=last_frame)
    if len(detections) == 0:
        raise InputError(f"{name}/{path.name}: no detections; expected a line 'frame,-1,left,top,width,height,score'")
    info = read_information(folder / "seqinfo.ini") if (folder / "seqinfo.ini").is_file() else None
    pictures, size = find_pictures(folder / "img1", last_frame=last_frame) if (folder / "img1").is_dir() else ((), None)
    length = int(detections.frame.max()) + 1
    answers = None
    if truth:
        truth_path = next((p for p in (folder / "gt/gt.txt", folder / "gt.txt") if p.is_file()), None)
        if truth_path is None:
            raise InputError(f"{name}: gt/gt.txt is missing; the truth is needed to measure tracks")
        answers = read_boxes(truth_path, truth=True, last_frame=last_frame)
        length = max(length, int(answers.frame.max(initial=-1)) + 1)
    if info is not None:
        wanted = min(info[0], last_frame) if last_frame else info[0]
        if pictures and len(pictures) < wanted:
            raise InputError(
                f"{name}/img1: frame {len(pictures) + 1} is missing; seqinfo.ini tells of {wanted} frames (to stop "
                f"earlier: --last_frame {len(pictures)})"
            )
        if size is not None and size != info[1]:
            raise InputError(f"{name}/img1: frames of {_text(size)} pixels, but seqinfo.ini tells of {_text(info[1])}")
        if length > wanted:
            raise InputError(
                f"{name}/{path.name}: frame {length}, but seqinfo.ini tells of {wanted} frames (to stop earlier: "
                f"--last_frame {wanted})"
            )
        size, length = info[1], wanted
    if pictures:
        if length > len(pictures) and info is None:
            raise InputError(
                f"{name}/{path.name}: boxes in frame {length}, but img1 ends with frame {len(pictures)}; add the "
                f"pictures, or cut with --last_frame {len(pictures)}"
            )
        length = len(pictures)
    where = f"{name}/{path.name}"
    if size is None:  # nobody knows it: as large as the boxes need
        size = tuple(int(max(1, n)) for n in np.ceil(detections.box[:, 2:].max(0)))
    _refuse_outside(where, detections, size)
    if answers is not None and len(answers) and answers.frame.max() >= length:
        last = int(answers.frame.max()) + 1
        raise InputError(f"{name}/{truth_path.name}: frame {last} of a video of {length} frames")
    return Video(name, length, size, detections, answers, pictures)


def read_boxes(path: Path | str, *, truth: bool = False, last_frame: int = 0) -> Boxes:
    """Read a MOTChallenge file; frames may come in any order.  Of a truth, what is marked as ignored is left out.

    Raises:
        InputError: naming file and line: another number of columns, no number, NaN, an empty or inverted box, a frame
            below 1, an identity twice in a frame of a truth.
    """
    path = Path(path)
    owner = path.parent.parent if path.parent.name in ("det", "gt") else path.parent
    where = f"{owner.name}/{path.name}"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{where}: cannot be read as text; expected MOTChallenge lines") from None
    rows: list[tuple[int, int, Sequence[float], float]] = []
    seen: set[tuple[int, int]] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.replace(" ", ",").replace("\t", ",").split(",") if "," not in line else line.split(",")
        at = f"{where}, line {number}"
        if len(parts) not in COLUMNS:
            raise InputError(f"{at}: {len(parts)} columns; expected 7 to 10: frame,id,left,top,width,height,score,...")
        try:
            values = [float(part) for part in parts]
        except ValueError:
            raise InputError(f"{at}: not a number; expected frame,id,left,top,width,height,score,...") from None
        if not all(math.isfinite(value) for value in values[:7]):
            raise InputError(f"{at}: NaN or infinite; expected frame,id,left,top,width,height,score,...")
        frame, identity = values[0], int(values[1])
        if frame != int(frame) or not 1 <= frame <= MOST_FRAMES:
            raise InputError(f"{at}: frame {parts[0].strip()}; expected a whole number from 1 to {MOST_FRAMES}")
        left, top, width, height = values[2:6]
        if last_frame and frame > last_frame:
            continue
        at = f"{at} (frame {int(frame)})"
        if truth and (
            values[VISIBLE_COLUMN] == 0 or (len(values) == 9 and int(values[CLASS_COLUMN]) != PEDESTRIAN)
        ):
            continue
        if width <= 0 or height <= 0:
            raise InputError(f"{at}: a box of {width:g} x {height:g} pixels; width and height must be above 0")
        if truth:
            if (int(frame), identity) in seen:
                raise InputError(f"{at}: identity {identity} twice in one frame")
            seen.add((int(frame), identity))
        rows.append((int(frame) - 1, identity, (left - 1, top - 1, left - 1 + width, top - 1 + height), values[6]))
    return make_boxes(rows)


def read_information(path: Path | str) -> tuple[int, tuple[int, int]]:
    """Number of frames, and width and height, of a ``seqinfo.ini``; InputError if it does not tell."""
    path = Path(path)
    where = f"{path.parent.name}/{path.name}"
    parser = configparser.ConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
        section = parser["Sequence"]
        numbers = [section.getint(name) for name in ("seqLength", "imWidth", "imHeight")]
        if min(numbers) < 1:
            raise ValueError
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError, ValueError, TypeError):
        raise InputError(f"{where}: expected seqLength, imWidth and imHeight above 0 under [Sequence]") from None
    return numbers[0], (numbers[1], numbers[2])


def find_pictures(folder: Path | str, *, last_frame: int = 0) -> tuple[tuple[Path, ...], tuple[int, int] | None]:
    """Pictures of frames 1, 2, ... by the numbers that are their names, and their width and height.

    Raises InputError, naming the frame: one that is missing or twice there, that cannot be read, or of another size.
    """
    from PIL import Image

    folder = Path(folder)
    where = f"{folder.parent.resolve().name}/{folder.name}"
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURES:
            continue
        if not path.stem.isdigit():
            raise InputError(f"{where}/{path.name}: expected the frame's number as the name, such as 000001.jpg")
        number = int(path.stem)
        if number in files:
            raise InputError(f"{where}: frame {number} is there twice, {files[number].name} and {path.name}")
        if not last_frame or number <= last_frame:
            files[number] = path
    missing = next((n for n in range(1, max(files, default=0)) if n not in files), None)
    if missing is not None:
        raise InputError(f"{where}: frame {missing} is missing; expected pictures 1 to {max(files)} without a gap")
    size = None
    for number in sorted(files):
        try:
            with Image.open(files[number]) as picture:
                here = picture.size
        except OSError:
            raise InputError(f"{where}/{files[number].name}: frame {number} cannot be read as a picture") from None
        if size is not None and here != size:
            raise InputError(
                f"{where}/{files[number].name}: frame {number} has {_text(here)} pixels, those before {_text(size)}"
            )
        size = here
    return tuple(files[number] for number in sorted(files)), size


def write_boxes(path: Path | str, boxes: Boxes) -> None:
    """Write MOTChallenge text: frame, identity, left, top, width, height, score, -1, -1, -1; by frame and identity."""
    order = np.lexsort((boxes.identity, boxes.frame))
    lines = []
    for n in order:
        left, top, right, bottom = (float(value) for value in boxes.box[n])
        numbers = f"{left + 1:.2f},{top + 1:.2f},{right - left:.2f},{bottom - top:.2f},{float(boxes.score[n]):.4f}"
        lines.append(f"{int(boxes.frame[n]) + 1},{int(boxes.identity[n])},{numbers},-1,-1,-1\n")
    with whole_file(path) as part:
        part.write_text("".join(lines), encoding="utf-8")


def _detections(folder: Path) -> Path:
    """Where a video's detections lie."""
    short = folder / "det.txt"
    return short if short.is_file() and not (folder / "det/det.txt").is_file() else folder / "det" / "det.txt"


def _refuse_outside(where: str, boxes: Boxes, size: tuple[int, int]) -> None:
    low, high = boxes.box[:, :2], boxes.box[:, 2:]
    outside = (high <= 0).any(1) | (low >= np.array(size, np.float32)).any(1)
    if outside.any():
        n = int(np.flatnonzero(outside)[0])
        left, top = (f"{value + 1:g}" for value in low[n])
        raise InputError(
            f"{where}, frame {int(boxes.frame[n]) + 1}: the box at left {left}, top {top} lies outside the picture of "
            f"{_text(size)} pixels"
        )


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
