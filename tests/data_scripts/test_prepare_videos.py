"""Preparing sequences, side by side or in the published layout of DAVIS."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from medrl.data.video_phantoms import write_video_phantoms
from medrl.data.videos import read_dataset_of_videos, read_videos
from medrl.types import InputError

SCRIPTS = Path(__file__).resolve().parents[2] / "data_scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    sys.modules.pop("prepare_videos", None)
    import prepare_videos

    return prepare_videos


@pytest.mark.parametrize("davis", [False, True])
def test_sequences_are_listed_and_checked(script, tmp_path, davis):
    write_video_phantoms(tmp_path / "in", 3, frames=2, size=(12, 16))
    if davis:
        for folder in (tmp_path / "in").glob("phantom_*"):
            for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
                target = tmp_path / "davis" / kind / "480p" / folder.name
                target.mkdir(parents=True)
                for path in folder.glob(f"*.{suffix}"):
                    shutil.copy(path, target)
    source = tmp_path / ("davis" if davis else "in")
    path = script.prepare(source, tmp_path / "out", test=["phantom_001"], validation=[], copy=davis)
    lists = json.loads(path.read_text())
    assert lists == {"training": ["phantom_000", "phantom_002"], "validation": ["phantom_001"], "test": ["phantom_001"]}
    (video,) = read_videos(read_dataset_of_videos(tmp_path / "out", "test"))
    assert video.frames.shape == (2, 3, 12, 16)
    with pytest.raises(InputError, match="phantom_9 is none of"):
        script.prepare(source, tmp_path / "out", test=["phantom_9"], validation=[])
