"""Images and the boxes of one class in them, on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medrl.types import InputError


class BoxCases:
    """N images of at most one shape and the boxes of the objects of one class.

    Boxes are in pixels of these images, which are usually smaller than the files they came from: ``scale`` pixels (or
    mm) of a file a pixel, from ``origin`` on.  Grey values are 1 to 255; 0 is outside.

    Args:
        images: (N, C, Y, X) or (N, C, X, Y, Z) uint8; the part beyond ``size`` is 0.
        boxes: (N, M, 2 D), padded with any rows that ``present`` (N, M) denies; None for images without answers.
        size: (N, D) sides of each image, x first; all of it by default.
        scale: (N, D) by default 1.
        origin: (N, D) by default 0.

    Raises:
        InputError: shapes or types are others, or a box is empty, inverted or not inside its image.
    """

    def __init__(
        self, images: Tensor, boxes: Tensor | None = None, present: Tensor | None = None, *,
        size: Tensor | None = None, scale: Tensor | None = None, origin: Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.dims = images.ndim - 2
        if self.dims not in (2, 3) or images.dtype != torch.uint8:
            shape = tuple(images.shape)
            raise InputError(f"images {shape} of {images.dtype}; expected (N, C, Y, X) or (N, C, X, Y, Z) bytes")
        count, device = len(images), images.device
        sides = images.shape[2:] if self.dims == 3 else images.shape[2:][::-1]
        whole = torch.tensor(list(sides), dtype=torch.float32, device=device).expand(count, -1)
        self.images, self.size = images, (whole if size is None else size.float()).to(device)
        self.scale = (torch.ones(count, self.dims) if scale is None else scale.float()).to(device)
        self.origin = (torch.zeros(count, self.dims) if origin is None else origin.float()).to(device)
        self.names = tuple(names) if names is not None else tuple(str(n) for n in range(count))
        if boxes is None:
            boxes, present = torch.zeros(count, 1, 2 * self.dims), torch.zeros(count, 1, dtype=torch.bool)
        if boxes.shape[1] == 0:
            raise InputError("boxes have no row an image; pad them to one at least")
        present = torch.ones(boxes.shape[:2], dtype=torch.bool) if present is None else present
        self.boxes, self.present = boxes.float().to(device), present.to(device)
        self._check()

    def _check(self) -> None:
        low, high = self.boxes[..., : self.dims], self.boxes[..., self.dims :]
        slack = 0.01  # of rounding
        wrong = ((low >= high) | (low < -slack) | (high > self.size[:, None] + slack)).any(-1) & self.present
        if bool(wrong.any()):
            row = int(wrong.any(1).int().argmax())
            raise InputError(f"{self.names[row]}: a box is empty, inverted or outside of the image; correct it")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where everything lives."""
        return self.images.device

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.images.shape[1]

    def to(self, device: torch.device | str) -> BoxCases:
        """Move to a device; returns self."""
        for name in ("images", "size", "scale", "origin", "boxes", "present"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def select(self, index: Tensor | Sequence[int]) -> BoxCases:
        """Some of the cases (K,), in that order."""
        index = torch.as_tensor(index, device=self.device).long()
        names = [self.names[int(n)] for n in index]
        return BoxCases(
            self.images[index], self.boxes[index], self.present[index], size=self.size[index], scale=self.scale[index],
            origin=self.origin[index], names=names,
        )  # fmt: skip

    def in_file(self, case: Tensor, box: Tensor) -> Tensor:
        """Boxes (B, 2 D) of cases (B,) in pixels or mm of the files."""
        scale, origin = self.scale[case.long()].repeat(1, 2), self.origin[case.long()].repeat(1, 2)
        return box * scale + origin

    def mirrored(self) -> BoxCases:
        """These cases and all their mirror images (4 or 8 times as many), for training."""
        parts = [self]
        for axis in range(self.dims):
            parts += [_mirror(part, axis) for part in parts]
        fields = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("images", "boxes", "present", "size", "scale", "origin")
        }
        names = [name for part in parts for name in part.names]
        return BoxCases(fields.pop("images"), fields.pop("boxes"), fields.pop("present"), **fields, names=names)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: cases are never replaced."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""


def _mirror(cases: BoxCases, axis: int) -> BoxCases:
    """Mirror along an axis of the boxes; images must fill their shape."""
    dims = cases.dims
    place = 2 + axis if dims == 3 else 3 - axis
    if bool((cases.size[:, axis] != cases.images.shape[place]).any()):
        raise InputError("images of several sizes cannot be mirrored together; leave that out, or crop them alike")
    boxes = cases.boxes.clone()
    length = cases.size[:, axis, None]
    boxes[..., axis], boxes[..., dims + axis] = length - cases.boxes[..., dims + axis], length - cases.boxes[..., axis]
    return BoxCases(
        cases.images.flip(place), boxes, cases.present, size=cases.size, scale=cases.scale, origin=cases.origin,
        names=cases.names,
    )  # fmt: skip


def pad_boxes(boxes: Sequence[Tensor], dims: int) -> tuple[Tensor, Tensor]:
    """Stack lists of boxes (K, 2 D) to (N, M, 2 D) and ``present`` (N, M), M being 1 at least."""
    most = max(1, *(len(part) for part in boxes)) if boxes else 1
    out, present = torch.zeros(len(boxes), most, 2 * dims), torch.zeros(len(boxes), most, dtype=torch.bool)
    for row, part in enumerate(boxes):
        out[row, : len(part)] = part.reshape(-1, 2 * dims)
        present[row, : len(part)] = True
    return out, present
