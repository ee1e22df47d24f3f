"""Videos in, tracks out: the parts of a bundle round a tracker."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor, nn

from medrl.data.track_pictures import appearances, write_pictures
from medrl.data.tracks import Boxes, find_videos, read_video, write_boxes
from medrl.geometry.box_motion import MotionNoise
from medrl.inference.box_refinement import BoxRefiner
from medrl.inference.track_decisions import Policy
from medrl.inference.tracking import Tracker
from medrl.inference.transforms import as_switch
from medrl.types import InputError


def list_videos(dataset_dir: Path | str) -> list[dict[str, Any]]:
    """The videos of a folder as ``{"case": name, "folder": path}``; InputError if there is none."""
    return [{"case": name, "folder": path} for name, path in find_videos(dataset_dir).items()]


class LoadVideod(MapTransform):
    """Reads ``data[folder_key]``: the video comes under ``video_key``, its detections (N, 5), boxes and scores, here.

    With ``truth`` the video needs one.  ``last_frame`` (from 1) cuts it short; 0 keeps it whole.
    """

    def __init__(
        self, keys: KeysCollection = "detections", *, folder_key: str = "folder", video_key: str = "video",
        truth: bool | str = False, last_frame: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.folder_key, self.video_key, self.last_frame = folder_key, video_key, int(last_frame)
        self.truth = as_switch(truth, "truth")
        if self.last_frame < 0:
            raise InputError(f"last_frame is {last_frame}; expected a frame from 1, or 0 for all")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with the video."""
        done = dict(data)
        video = done[self.video_key] = read_video(done[self.folder_key], truth=self.truth, last_frame=self.last_frame)
        for key in self.keys:
            found = np.concatenate([video.detections.box, video.detections.score[:, None]], 1)
            done[key] = torch.from_numpy(found)
        return done


class TrackInferer(Inferer):
    """Follows the objects of videos by a policy; the ``settings`` are those of `Tracker`.

    ``noise`` are those of the motion, by name; ``appearance``: whether colours are looked at where there are frames;
    without ``looking_back`` there is no ``fill``.  A ``refiner`` looks at the frames again, at the tracks' boxes.
    """

    def __init__(
        self, *, noise: Mapping[str, float] | None = None, appearance: bool | str = False,
        looking_back: bool | str = True, refiner: BoxRefiner | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        motion = MotionNoise(**(noise or {}))
        self.appearance = as_switch(appearance, "appearance")
        if not as_switch(looking_back, "looking_back"):
            settings["fill"] = None
        self.tracker, self.refiner = Tracker(Policy(motion), motion, **settings), refiner

    def __call__(
        self, inputs: Tensor, network: nn.Module, *args: Any, video: Sequence[Any], **kwargs: Any
    ) -> list[Boxes]:
        """Tracks of each video; ``inputs`` are its detections and are not read."""
        tracks = [self.tracker.track(v, network, appearances(v) if self.appearance else None) for v in video]
        if self.refiner is None:
            return tracks
        return [self.refiner(v, boxes) for v, boxes in zip(video, tracks, strict=True)]


class SaveTracksd(MapTransform):
    """Writes ``<case>.txt`` (MOTChallenge); with ``pictures`` also ``<case>.png`` and the animated ``<case>.gif``.

    ``data["files"]`` lists the names written.
    """

    def __init__(
        self, keys: KeysCollection = "pred", *, output_dir: Path | str, video_key: str = "video",
        case_key: str = "case", pictures: bool | str = False,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.output_dir, self.video_key, self.case_key = Path(output_dir), video_key, case_key
        self.pictures = as_switch(pictures, "pictures")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write, and return a copy of the data that lists the files."""
        done = dict(data)
        case = done[self.case_key]
        for key in self.key_iterator(done):
            write_boxes(self.output_dir / f"{case}.txt", done[key])
            done["files"] = [f"{case}.txt"]
            if self.pictures:
                done["files"] += write_pictures(self.output_dir, str(case), done[self.video_key], done[key])
        return done


class TrackAnswers:
    """Frames, boxes and tracks of every video, for the report."""

    def clear(self) -> None:
        """Forget an earlier run; nothing is kept."""

    def add(self, case: str, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Count what is there."""
        tracks, video = data["pred"], data["video"]
        count = len(np.unique(tracks.identity))
        silent = video.frames - len(np.unique(video.detections.frame))
        entry = {"frames": video.frames, "detections": len(video.detections), "frames_without_detections": silent}
        return entry | {"tracks": count, "boxes": len(tracks)}, f"{count} tracks in {video.frames} frames"

    def write(self, output_dir: Path) -> None:
        """Nothing: the report says it all."""
