"""MOTChallenge files and frame folders: what is read, and what is refused with its place."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medrl.data.track_phantoms import write_phantoms
from medrl.data.tracks import Boxes, find_pictures, find_videos, read_boxes, read_video, write_boxes
from medrl.types import InputError

GOOD = "1,-1,10,20,30,40,0.9,-1,-1,-1\n"


def video(folder, text, *, frames=0, size=(64, 48), info=None, truth=None):
    (folder / "clip/det").mkdir(parents=True)
    (folder / "clip/det/det.txt").write_text(text)
    for number in range(1, frames + 1):
        (folder / "clip/img1").mkdir(exist_ok=True)
        Image.new("RGB", size).save(folder / f"clip/img1/{number:06d}.png")
    if info:
        (folder / "clip/seqinfo.ini").write_text(
            f"[Sequence]\nname=clip\nseqLength={info[0]}\nimWidth={info[1]}\nimHeight={info[2]}\n"
        )
    if truth is not None:
        (folder / "clip/gt").mkdir()
        (folder / "clip/gt/gt.txt").write_text(truth)
    return folder / "clip"


def test_files_count_from_one_and_records_from_zero(tmp_path):
    text = "3,-1,10,20,30,40,0.5\n\n1,-1,1,1,5.5,6,0.9\n3,-1,11,20,30,40,1\n"  # frames in any order
    boxes = read_boxes(video(tmp_path, text) / "det/det.txt")
    assert boxes.frame.tolist() == [0, 2, 2]
    np.testing.assert_allclose(boxes.box[0], [0, 0, 5.5, 6])
    np.testing.assert_allclose(boxes.box[1], [9, 19, 39, 59])
    assert boxes.score.tolist() == pytest.approx([0.9, 0.5, 1.0])
    found = read_video(tmp_path / "clip")
    assert (found.frames, found.size, found.truth) == (3, (40, 59), None)


def test_round_trip(tmp_path):
    boxes = Boxes(
        np.array([4, 0, 4]), np.array([[1, 2, 11, 22], [0.5, 0, 3, 9], [5, 6, 7, 8]], np.float32),
        np.array([0.25, 1, 0.5], np.float32), np.array([2, 7, 1]),
    )  # fmt: skip
    write_boxes(tmp_path / "clip.txt", boxes)
    lines = (tmp_path / "clip.txt").read_text().splitlines()
    assert lines[0] == "1,7,1.50,1.00,2.50,9.00,1.0000,-1,-1,-1"
    assert [line.split(",")[:2] for line in lines] == [["1", "7"], ["5", "1"], ["5", "2"]]
    again = read_boxes(tmp_path / "clip.txt")
    assert again.identity.tolist() == [7, 1, 2]
    np.testing.assert_allclose(again.box, boxes.box[[1, 2, 0]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,-1,10,20,0,40,0.9", r"line 2 \(frame 1\): a box of 0 x 40 pixels"),
        ("1,-1,10,20,30,-4,0.9", r"line 2 \(frame 1\): a box of 30 x -4 pixels"),
        ("1,-1,10,nan,30,4,0.9", "line 2: NaN"),
        ("1,-1,10,20,30,inf,0.9", "line 2: NaN or infinite"),
        ("1,-1,10,20,30,4", "line 2: 6 columns"),
        ("1,-1,10,20,30,4,1,-1,-1,-1,-1", "line 2: 11 columns"),
        ("1,-1,ten,20,30,4,1", "line 2: not a number"),
        ("0,-1,10,20,30,4,1", "line 2: frame 0"),
        ("1.5,-1,10,20,30,4,1", "line 2: frame 1.5"),
        ("9999999,-1,10,20,30,4,1", "line 2: frame 9999999"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(InputError, match=f"clip/det.txt, {message}") as caught:
        read_video(video(tmp_path, GOOD + line + "\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"text": ""}, "clip/det.txt: no detections"),
        ({"text": GOOD + "2,-1,80,20,30,40,0.9\n", "frames": 2}, "frame 2: the box at left 80, top 20 lies outside"),
        ({"text": "1,-1,-50,20,30,40,0.9\n"}, "frame 1: the box at left -50, top 20 lies outside"),
        ({"text": GOOD + "4,-1,1,1,5,5,1\n", "frames": 2}, "boxes in frame 4, but img1 ends with frame 2"),
        ({"text": GOOD, "frames": 2, "info": (3, 64, 48)}, "img1: frame 3 is missing; .* --last_frame 2"),
        ({"text": GOOD, "frames": 2, "info": (2, 60, 48)}, "frames of 64 x 48 pixels, but seqinfo.ini tells of 60"),
        ({"text": GOOD + "7,-1,1,1,5,5,1\n", "info": (3, 64, 48)}, "frame 7, but seqinfo.ini tells of 3 frames"),
        (
            {"text": GOOD + "7,-1,1,1,5,5,1\n", "frames": 3, "info": (3, 64, 48)},
            "frame 7, but seqinfo.ini tells of 3 frames",
        ),
        ({"text": GOOD, "info": (0, 64, 48)}, "seqinfo.ini: expected seqLength"),
        ({"text": GOOD, "truth": "1,1,1,1,5,5,1\n1,1,2,2,5,5,1\n"}, "gt.txt, line 2 .*identity 1 twice"),
    ],
)
def test_a_bad_video_is_named(tmp_path, setting, message):
    folder = video(tmp_path, **setting)
    with pytest.raises(InputError, match=message) as caught:
        read_video(folder, truth="truth" in setting)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_bad_pictures_are_named(tmp_path):
    folder = video(tmp_path, GOOD, frames=4) / "img1"
    assert len(find_pictures(folder)[0]) == 4
    (folder / "000002.png").unlink()
    with pytest.raises(InputError, match="clip/img1: frame 2 is missing"):
        find_pictures(folder)
    Image.new("RGB", (32, 48)).save(folder / "000002.png")
    with pytest.raises(InputError, match=r"000002.png: frame 2 has 32 x 48 pixels, those before 64 x 48"):
        find_pictures(folder)
    (folder / "000002.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"000002.png: frame 2 cannot be read"):
        find_pictures(folder)
    Image.new("RGB", (64, 48)).save(folder / "000002.png")
    Image.new("RGB", (64, 48)).save(folder / "2.png")
    with pytest.raises(InputError, match="frame 2 is there twice"):
        find_pictures(folder)
    (folder / "2.png").rename(folder / "cover.png")
    with pytest.raises(InputError, match=r"cover.png: expected the frame's number"):
        find_pictures(folder)


def test_a_video_may_be_cut_short(tmp_path):
    folder = video(tmp_path, GOOD + "4,-1,1,1,5,5,1\n", frames=2, info=(9, 64, 48))
    found = read_video(folder, last_frame=2)
    assert (found.frames, len(found.detections), len(found.pictures)) == (2, 1, 2)


def test_truth_leaves_out_what_is_not_to_be_found(tmp_path):
    of_2017 = "1,1,1,1,5,5,1,1,0.9\n1,2,1,1,5,5,0,1,0.9\n1,3,1,1,5,5,1,8,0.9\n"
    assert read_video(video(tmp_path, GOOD, truth=of_2017), truth=True).truth.identity.tolist() == [1]
    (tmp_path / "b").mkdir()
    of_2015 = "1,1,1,1,5,5,1,4.5,5.5,0\n"
    assert read_video(video(tmp_path / "b", GOOD, truth=of_2015), truth=True).truth.identity.tolist() == [1]
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match=r"gt.txt is missing"):
        read_video(video(tmp_path / "c", GOOD), truth=True)


def test_videos_are_found(tmp_path):
    with pytest.raises(InputError, match=r"no video found; expected <name>/det/det.txt"):
        find_videos(tmp_path)
    write_phantoms(tmp_path, 2, frames=(12, 12), objects=(2, 2), pictures=True, size=(160, 90))
    assert list(find_videos(tmp_path)) == ["phantom_000", "phantom_001"]
    assert list(find_videos(tmp_path / "phantom_001")) == ["phantom_001"]
    found = read_video(tmp_path / "phantom_000", truth=True)
    assert (found.frames, found.size, len(found.pictures)) == (12, (160, 90), 12)


def test_real_sequences(real_data, tmp_path):
    folder = real_data / "vision/mot_mini/MOT17-04-FRCNN"
    if not folder.is_dir():
        pytest.skip("MOT17-04 is absent")
    with pytest.raises(InputError, match="img1: frame 9 is missing"):
        read_video(folder)
    found = read_video(folder, truth=True, last_frame=8)
    assert (found.frames, found.size, len(found.pictures)) == (8, (1920, 1080), 8)
    assert len(found.detections) > 100
