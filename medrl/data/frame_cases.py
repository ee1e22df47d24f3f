"""Short clips of frames on one device, and where their objects are: for agents that look at pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medrl.data.track_phantoms import Phantom, render
from medrl.types import InputError


class FrameCases:
    """N clips of T frames, and up to K objects that are there in all of them.

    ``images`` (N, T, 3, Y, X) uint8; ``truth`` (N, T, K, 4) in pixels of these images; ``count`` (N,) objects.
    """

    def __init__(self, images: Tensor, truth: Tensor, count: Tensor) -> None:
        self.images, self.truth, self.count = images, truth, count
        self.length = images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.images.device

    def to(self, device: torch.device | str) -> FrameCases:
        """A copy on another device."""
        return FrameCases(*(value.to(device) for value in (self.images, self.truth, self.count)))

    @classmethod
    def from_phantoms(
        cls, phantoms: Sequence[Phantom], *, length: int = 11, stride: int = 2, visible: float = 0.5, seed: int = 0,
        varied: bool = False,
    ) -> FrameCases:  # fmt: skip
        """Clips from the middle of procedural videos, every ``stride``-th pixel.

        ``varied``: with walls and coats of their own, see `render`.
        Objects of which less than ``visible`` is in sight in some frame are left out, and so are clips without any.
        """
        images, boxes = [], []
        for number, phantom in enumerate(phantoms):
            video = phantom.video
            first = max(0, (video.frames - length) // 2)
            within = (video.truth.frame >= first) & (video.truth.frame < first + length)
            seen = within & (phantom.visible >= visible)
            names, times = np.unique(video.truth.identity[seen], return_counts=True)
            whole = names[times == length]
            if len(whole) == 0:
                continue
            of = [np.flatnonzero(seen & (video.truth.identity == name)) for name in whole]
            boxes.append(torch.from_numpy(np.stack([video.truth.box[n] for n in of], 1)) / stride)  # (T, K, 4)
            frames = render(phantom, seed + number, varied=varied)[first : first + length, ::stride, ::stride]
            images.append(torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))))
        if not images:
            raise InputError(f"no object is in sight for {length} frames: expected longer videos")
        most = max(box.shape[1] for box in boxes)
        truth = torch.stack([torch.nn.functional.pad(box, (0, 0, 0, most - box.shape[1])) for box in boxes])
        return cls(torch.stack(images), truth, torch.tensor([box.shape[1] for box in boxes]))

    def crop(self, case: Tensor, frame: Tensor, box: Tensor, size: int) -> Tensor:
        """(B, 3, size, size) uint8 of the pixels nearest to a raster over boxes (B, 4); 0 outside the picture."""
        height, width = self.images.shape[-2:]
        at = (torch.arange(size, device=box.device) + 0.5) / size
        x = (box[:, None, 0] + (box[:, 2] - box[:, 0])[:, None] * at).floor().long()
        y = (box[:, None, 1] + (box[:, 3] - box[:, 1])[:, None] * at).floor().long()
        inside = ((x >= 0) & (x < width))[:, None, :] & ((y >= 0) & (y < height))[:, :, None]
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        pixels = self.images[case[:, None, None], frame[:, None, None], :, y[:, :, None], x[:, None, :]]
        return torch.where(inside[:, None], pixels.movedim(-1, 1), 0)
