"""Boxes carried from frame to frame by nudges, and tracks whose boxes are refined on the frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medrl.data.frame_cases import FrameCases
from medrl.data.track_pictures import read_pixels
from medrl.data.tracks import Boxes, Video
from medrl.geometry.boxes import iou, iou_matrix
from medrl.tasks.box_refinement import STOP, BoxRefinementTask, RefinementState
from medrl.types import InputError

Choose = Callable[[BoxRefinementTask, RefinementState], Tensor]


def greedy(network: nn.Module, *, sooner: float = 0.0) -> Choose:
    """The policy's best action, where the log-odds of stopping are raised by ``sooner``."""

    def choose(task: BoxRefinementTask, state: RefinementState) -> Tensor:
        logits = network(task.observe(state)).logits
        return torch.cat([logits[:, :STOP], logits[:, STOP:] + sooner], 1).argmax(1)

    return choose


def ideal(task: BoxRefinementTask, state: RefinementState) -> Tensor:
    """The oracle's action."""
    return task.expert(state)


@torch.no_grad()
def carry(task: BoxRefinementTask, choose: Choose, state: RefinementState) -> Tensor:
    """Boxes (B, F, 4) of the F = ``task.frames`` frames from a state on, which is at the start of its first."""
    rows = torch.arange(len(state.case), device=state.case.device)
    boxes = state.box[:, None].repeat(1, task.frames, 1)
    while len(rows):
        after = task.advance(state, choose(task, state))
        done = after.left < state.left
        boxes[rows[done], task.frames - state.left[done].long()] = after.box[done]
        going = after.left > 0
        rows, state = rows[going], type(state)(*(value[going] for value in after))
    return boxes


class BoxRefiner:
    """Refines boxes of tracks on the pictures of their video.

    A box has a detection of its own where one of its frame overlaps it by ``near``.  Refined are the others
    (``boxes="gaps"``: predictions, filled gaps) or all (``"all"``), each from where it is, with the object's last
    detected box as the template; the first detected box of a track stays.  A box that would end with less than
    ``least`` overlap with where it started stays, too.  The ``view`` (size, margin, template, ...) goes to
    `BoxRefinementTask`.
    """

    def __init__(
        self, network: nn.Module, *, boxes: str = "gaps", near: float = 0.5, least: float = 0.4, **view: Any
    ) -> None:  # fmt: skip
        self.network, self.every, self.near, self.least, self.view = network, boxes == "all", near, least, view

    def __call__(self, video: Video, tracks: Boxes, frames: np.ndarray | None = None) -> Boxes:
        """The tracks with refined boxes; as they were where the video has no pictures.

        ``frames`` (T, H, W, 3) uint8 stand for the video's own pictures.
        """
        if frames is None and not video.pictures:
            return tracks

        def read(number: int) -> np.ndarray:
            return read_pixels(video, number) if frames is None else frames[number]

        box = tracks.box.copy()
        known: dict[int, tuple[int, np.ndarray]] = {}  # frame and box of everybody's last detection
        before: dict[int, np.ndarray] = {}  # boxes in the frame before
        pictures: dict[int, Tensor] = {}
        for frame in range(video.frames):
            here = np.flatnonzero(tracks.frame == frame)
            names = tracks.identity[here].tolist()
            own = self._detected(video, frame, box[here])
            rows = [n for n, name in enumerate(names) if name in known and (self.every or not own[n])]
            if rows:
                sources = [known[names[n]] for n in rows]
                last = [before.get(names[n], known[names[n]][1]) for n in rows]
                start = box[here[rows]]
                box[here[rows]] = self._refined(read, frame, sources, np.stack(last), start, pictures)
            known |= {name: (frame, box[here[n]]) for n, name in enumerate(names) if own[n]}
            before = {name: box[here[n]] for n, name in enumerate(names)}
        return Boxes(tracks.frame, box, tracks.score, tracks.identity)

    def _detected(self, video: Video, frame: int, box: np.ndarray) -> np.ndarray:
        """(N,) bool: boxes of a frame with a detection of their own."""
        found = video.detections.box[video.detections.frame == frame]
        if not len(found) or not len(box):
            return np.zeros(len(box), bool)
        return (iou_matrix(torch.from_numpy(box), torch.from_numpy(found)).amax(1) >= self.near).numpy()

    def _refined(
        self, read: Callable[[int], np.ndarray], frame: int, sources: list[tuple[int, np.ndarray]], last: np.ndarray,
        start: np.ndarray, pictures: dict[int, Tensor],
    ) -> np.ndarray:  # fmt: skip
        """Boxes (N, 4) of a frame, from ``start``; ``pictures`` are those read so far, which it keeps short."""
        device = next(self.network.parameters()).device
        numbers = sorted({frame - 1, frame, *(source for source, _ in sources)})
        for number in set(pictures) - set(numbers):
            del pictures[number]
        for number in set(numbers) - set(pictures):
            pixels = np.ascontiguousarray(read(number).transpose(2, 0, 1))
            pictures[number] = torch.from_numpy(pixels).to(device)
        images = torch.stack([pictures[number] for number in numbers])[None]
        place = {number: n for n, number in enumerate(numbers)}
        count = torch.zeros(1, dtype=torch.int64, device=device)
        cases = FrameCases(images, torch.zeros(1, len(numbers), 0, 4, device=device), count)
        task = BoxRefinementTask(cases=cases, **self.view)

        def whole(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        row = whole([0] * len(sources))
        before, first, template = (
            torch.from_numpy(np.asarray(value, np.float32)).to(device)
            for value in (last, start, np.stack([box for _, box in sources]))
        )
        state = task.given(row, row, row + place[frame], before, first, whole([place[n] for n, _ in sources]), template)
        box = carry(task, greedy(self.network), state)[:, 0]
        near = iou(box, first) >= self.least
        return torch.where(near[:, None], box, first).cpu().numpy()


def refined_boxes(value: bool | str) -> str:
    """``gaps``, ``all`` or nothing, as a setting or a command line says it; InputError for anything else."""
    word = {"false": "", "true": "gaps"}.get(str(value).lower(), str(value).lower())
    if word not in ("", "gaps", "all"):
        raise InputError(f"refine is {value!r}; expected false, gaps or all")
    return word
