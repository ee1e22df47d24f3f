"""Videos and their true masks, stacked on one device, for cutting agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medrl.data.seed_cases import pack, unpack
from medrl.geometry.boxes import corners
from medrl.geometry.colour_chance import BINS, colour_bins, remembered_chance
from medrl.geometry.crops import crop_boxes
from medrl.geometry.pasting import boxes_of_masks


class Video(NamedTuple):
    """An object in a video."""

    name: str
    frames: Tensor  # (T, 3, H, W) uint8
    masks: Tensor  # (T, H, W) bool; only the first is looked at where the object is to be found


class VideoCases:
    """N objects, each in the T frames of its video, on canvases of one size; shorter videos are padded.

    A video is shrunk or enlarged until it fits, and lies at the canvas's low corner; ``extent`` (N, 2) is the part of
    the canvas, in x and y, that it covers, ``zoom`` (N,) how many canvas pixels one of its own is wide.
    """

    def __init__(
        self, frames: Tensor, masks: Tensor, *, length: Tensor, extent: Tensor, zoom: Tensor, names: Sequence[str]
    ) -> None:
        count, steps, _, height, width = frames.shape
        self.frames = frames  # (N, T, 3, H, W) uint8
        bins = [colour_bins(part / 255, BINS).to(torch.int16) for part in frames]
        self.colours = torch.stack(bins)  # (N, T, H, W) int16, bins of the frames' colours
        self.length, self.extent, self.zoom, self.names = length, extent, zoom, list(names)
        self.shape = (height, width)
        self.truth = pack(masks.reshape(count * steps, -1)).reshape(count, steps, -1)  # bits of the true masks
        box, there = boxes_of_masks(masks.flatten(0, 1))
        # (N, T, 4) boxes round the true masks, where the object is hidden the one before; (N, T) where it is seen
        self.box, self.present = box.reshape(count, steps, 4), there.reshape(count, steps)
        for t in range(1, steps):
            self.box[:, t] = torch.where(self.present[:, t, None], self.box[:, t], self.box[:, t - 1])

    @classmethod
    def from_videos(cls, videos: Sequence[Video], *, canvas: Sequence[int]) -> VideoCases:
        """Stack videos of any sizes on canvases (H, W)."""
        steps = max(len(video.frames) for video in videos)
        frames = torch.zeros((len(videos), steps, 3, *canvas), dtype=torch.uint8)
        masks = torch.zeros((len(videos), steps, *canvas), dtype=torch.bool)
        zooms = [fit(video.frames.shape[2:], canvas) for video in videos]
        for n, (video, zoom) in enumerate(zip(videos, zooms, strict=True)):
            frames[n, : len(video.frames)] = on_canvas(video.frames, zoom, canvas).round().to(torch.uint8)
            masks[n, : len(video.masks)] = on_canvas(video.masks[:, None], zoom, canvas)[:, 0] > 0.5
        extent = [[v.frames.shape[3] * zoom, v.frames.shape[2] * zoom] for v, zoom in zip(videos, zooms, strict=True)]
        return cls(
            frames, masks, length=torch.tensor([len(video.frames) for video in videos]), extent=torch.tensor(extent),
            zoom=torch.tensor(zooms), names=[video.name for video in videos],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def device(self) -> torch.device:
        """Where the frames are."""
        return self.frames.device

    @property
    def pixels(self) -> int:
        """Pixels of a canvas."""
        return self.shape[0] * self.shape[1]

    def to(self, device: torch.device | str) -> VideoCases:
        """Move everything; returns itself."""
        for name in ("frames", "colours", "truth", "box", "present", "length", "extent", "zoom"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def crop(self, case: Tensor, frame: Tensor, box: Tensor, size: int) -> Tensor:
        """What boxes (B, 4) hold of frames (B,) of cases (B,): (B, 3, size, size) float32 in 0..255, 0 outside."""
        index = case.long() * self.frames.shape[1] + frame.long()
        return crop_boxes(self.frames.flatten(0, 1), index, box, (size, size))

    def crop_mask(self, packed: Tensor, box: Tensor, size: int) -> Tensor:
        """What boxes (B, 4) hold of packed masks (B, P): (B, 1, size, size) float32 in 0..1."""
        mask = self.unpacked(packed)[:, None]
        return crop_boxes(mask, torch.arange(len(mask), device=mask.device), box, (size, size))

    def chance(self, case: Tensor, frame: Tensor, given: Tensor, mask: Tensor) -> Tensor:
        """How likely the colours of frames (B,) are the object's, coarse and fine: (B, 2, H, W) in 0..1.

        By what frames ``given`` (B,) hold inside and outside the packed masks (B, P) that are known there.
        """
        case = case.long()
        now, known = (self.colours[case, at.long()].flatten(1) for at in (frame, given))
        return remembered_chance(now, known, unpack(mask, self.pixels).float()).unflatten(2, self.shape)

    def unpacked(self, packed: Tensor) -> Tensor:
        """Masks (B, H, W) bool of packed ones (B, P)."""
        return unpack(packed, self.pixels).unflatten(1, self.shape)


def fit(shape: Sequence[int], canvas: Sequence[int]) -> float:
    """How much an image (H, W) grows when it is made to fit a canvas."""
    return min(side / length for side, length in zip(canvas, shape, strict=True))


def on_canvas(images: Tensor, zoom: float, canvas: Sequence[int]) -> Tensor:
    """Images (T, C, H, W) zoomed at the low corner of canvases: (T, C, *canvas) float32, 0 outside."""
    box = torch.tensor([[0.0, 0.0, canvas[1] / zoom, canvas[0] / zoom]]).expand(len(images), 4)
    return crop_boxes(images, torch.arange(len(images)), box, canvas)


def filled(box: Tensor, shape: Sequence[int]) -> Tensor:
    """Packed masks (B, P) of the pixels whose centres lie in boxes (B, 4)."""
    low, high = corners(box)
    y, x = (torch.arange(n, device=box.device) + 0.5 for n in shape)
    rows, columns = ((low[:, k, None] <= at) & (at < high[:, k, None]) for k, at in ((1, y), (0, x)))
    return pack((rows[:, :, None] & columns[:, None]).flatten(1))
