"""Videos in folders: what is read, and what is refused in one line that names file and frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from medrl.data.video_cases import Video, VideoCases
from medrl.data.video_phantoms import phantom_cases, video_phantom, write_video_phantoms
from medrl.data.video_pictures import painted, write_animation, write_sheet
from medrl.data.videos import (
    find_sequences,
    frame_files,
    mask_file,
    palette,
    read_dataset_of_videos,
    read_sequence,
    read_truth,
    read_videos,
    write_labels,
    write_video,
)
from medrl.types import InputError


@pytest.fixture
def video(generator):
    return video_phantom(generator, frames=4, size=(24, 32))


@pytest.fixture
def folder(tmp_path, video):
    write_video(tmp_path / "seq", video)
    return tmp_path / "seq"


def refused(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip(folder, video):
    given = read_sequence(folder)
    assert given.name == "seq"
    assert [path.name for path in given.files] == [f"{n:05d}.jpg" for n in range(4)]
    assert given.objects == [1]
    assert torch.equal(given.masks[0], video.masks[0])
    assert float((given.frames.float() - video.frames).abs().mean()) < 12  # JPEG
    assert torch.equal(read_truth(folder) == 1, video.masks)
    (read,) = read_videos([folder])
    assert read.name == "seq"
    assert torch.equal(read.masks, video.masks)


def test_png_frames_have_their_masks_in_a_folder(folder):
    for path in folder.glob("*.jpg"):
        mask = path.with_suffix(".png")
        write_labels(folder / "masks" / mask.name, np.asarray(Image.open(mask)))
        Image.open(path).save(mask)
        path.unlink()
    given = read_sequence(folder)
    assert given.files[0].suffix == ".png"
    assert mask_file(given.files[0]).parent.name == "masks"
    assert int(given.masks.sum()) == int((read_truth(folder)[0] == 1).sum()) > 0


def test_masks_of_several_objects_and_of_0_and_255(folder):
    labels = np.zeros((24, 32), np.uint8)
    labels[2:6, 3:9], labels[10:14, 20:30] = 2, 5
    write_labels(folder / "00000.png", labels)
    given = read_sequence(folder)
    assert given.objects == [2, 5]
    assert given.masks.flatten(1).sum(1).tolist() == [24, 40]
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(folder / "00000.png")
    assert read_sequence(folder).objects == [1]


def test_a_box_takes_the_place_of_a_mask(folder):
    (folder / "00000.png").unlink()
    (folder / "box.txt").write_text("4, 5, 10, 8\n")
    given = read_sequence(folder)
    assert given.masks is None
    assert given.box.tolist() == [[4, 5, 14, 13]]
    for text, word in (("4,5,0,8", "empty or outside"), ("90,5,10,8", "empty or outside"), ("a,b", "x,y,width,height")):
        (folder / "box.txt").write_text(text)
        assert word in refused(read_sequence, folder)
        assert "seq/box.txt" in refused(read_sequence, folder)


def test_an_empty_first_mask(folder):
    write_labels(folder / "00000.png", np.zeros((24, 32), np.uint8))
    assert refused(read_sequence, folder).startswith("seq/00000.png is empty")


def test_a_mask_of_another_size(folder):
    write_labels(folder / "00000.png", np.ones((10, 32), np.uint8))
    assert "seq/00000.png is 32 x 10, but the frames are 32 x 24" in refused(read_sequence, folder)


def test_a_mask_that_is_a_picture(folder, generator):
    noise = generator.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "00000.png")
    assert "has colours" in refused(read_sequence, folder)
    Image.fromarray(noise[..., 0]).save(folder / "00000.png")
    assert "seq/00000.png has" in refused(read_sequence, folder)


def test_frames_of_different_sizes(folder):
    Image.new("RGB", (30, 24)).save(folder / "00002.jpg")
    assert "seq/00002.jpg is 30 x 24, but 00000.jpg is 32 x 24" in refused(read_sequence, folder)


def test_a_missing_frame(folder):
    (folder / "00002.jpg").unlink()
    message = refused(read_sequence, folder)
    assert message.startswith("seq: frame 00002 is missing between 00001.jpg and 00003.jpg")
    for n in (1, 3):
        (folder / f"{n:05d}.jpg").rename(folder / f"{2 * n + 4:05d}.jpg")
    assert "missing between 00000.jpg and 00006.jpg" in refused(frame_files, folder)
    (folder / "00000.jpg").rename(folder / "00002.jpg")
    assert len(frame_files(folder)) == 3  # every fourth frame of a video is a video


def test_frames_without_numbers_or_with_one_twice(folder):
    (folder / "00003.jpg").rename(folder / "00002.jpeg")
    assert "has the same number" in refused(frame_files, folder)
    (folder / "00002.jpeg").rename(folder / "last.jpg")
    assert "seq/last.jpg: a frame without a number" in refused(frame_files, folder)


def test_a_truncated_image(folder):
    path = folder / "00001.jpg"
    path.write_bytes(path.read_bytes()[:300])
    assert refused(read_sequence, folder).startswith("seq/00001.jpg cannot be read as an image")
    path = folder / "00000.png"
    path.write_bytes(path.read_bytes()[:40])
    (folder / "00001.jpg").unlink()
    for n in (2, 3):
        (folder / f"{n:05d}.jpg").rename(folder / f"{n - 1:05d}.jpg")
    assert refused(read_sequence, folder).startswith("seq/00000.png cannot be read")


def test_folders_without_frames_or_masks(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty: 0 frames found" in refused(read_sequence, tmp_path / "empty")
    assert "holds no video" in refused(find_sequences, tmp_path / "empty")
    assert "is not a folder" in refused(find_sequences, tmp_path / "none")
    assert find_sequences(tmp_path) == {"empty": tmp_path / "empty", "seq": folder}
    assert find_sequences(folder) == {"seq": folder}
    (folder / "00002.png").unlink()
    assert "seq/00002.jpg has no mask" in refused(read_truth, folder)
    (folder / "00000.png").unlink()
    assert "no mask of the first frame; expected 00000.png, or box.txt" in refused(read_sequence, folder)


def test_dataset_lists(tmp_path):
    write_video_phantoms(tmp_path, 5, frames=2, size=(16, 16))
    names = [path.name for path in read_dataset_of_videos(tmp_path, "training")]
    assert names == ["phantom_000", "phantom_001", "phantom_002"]
    assert "section other" in refused(read_dataset_of_videos, tmp_path, "other") or "list other" in refused(
        read_dataset_of_videos, tmp_path, "other"
    )
    (tmp_path / "dataset.json").write_text('{"training": ["gone"], "test": []}')
    assert "names gone" in refused(read_dataset_of_videos, tmp_path, "training")
    assert "section test is empty" in refused(read_dataset_of_videos, tmp_path, "test")
    (tmp_path / "dataset.json").unlink()
    assert len(read_dataset_of_videos(tmp_path, "training")) == 5


def test_the_palette_is_that_of_pascal_voc():
    assert palette()[[0, 1, 2, 3, 15, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [192, 128, 128], [224, 224, 192]
    ]  # fmt: skip


def test_labels_are_palette_files(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_labels(tmp_path / "a.png", labels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_phantoms_are_seeded_and_show_their_object():
    first, again, other = phantom_cases(2, seed=1), phantom_cases(2, seed=1), phantom_cases(2, seed=2)
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, other.frames)
    assert first.present[:, 0].all()
    middle = first.box.reshape(2, 20, 2, 2).mean(2)
    assert float((middle[:, -1] - middle[:, 0]).norm(dim=1).min()) > 3  # they move
    areas = torch.stack([first.unpacked(t).flatten(1).sum(1) for t in first.truth])
    assert bool((areas.amin(1) < 0.8 * areas[:, 0]).any())  # and are occluded


def test_cases_fit_videos_of_any_size_on_a_canvas():
    image = torch.zeros((2, 3, 10, 20), dtype=torch.uint8)
    image[:, :, 2:6, 4:12] = 100
    mask = image[:, 0] > 0
    cases = VideoCases.from_videos([Video("a", image, mask), Video("b", image[:1], mask[:1])], canvas=(16, 10))
    assert cases.zoom.tolist() == [0.5, 0.5]
    assert cases.extent.tolist() == [[10, 5], [10, 5]]
    assert cases.length.tolist() == [2, 1]
    assert cases.box[0, 0].tolist() == [2, 1, 6, 3]
    assert cases.present.tolist() == [[True, True], [True, False]]
    assert cases.box[1, 1].tolist() == [2, 1, 6, 3]  # where it is not seen, the box before
    assert cases.frames[0, 0, 0, 1:3, 2:6].float().mean() == 100
    assert cases.frames[:, :, :, 5:].sum() == 0


def test_pictures(tmp_path, video):
    labels = video.masks.to(torch.uint8)
    box = torch.tensor([[4.0, 5.0, 12.0, 14.0]]).expand(1, 4, 4)
    pictures = painted(video.frames, labels, box, box + torch.tensor([-2.0, -2, 2, 2]), [1])
    assert pictures[0][5, 4:12].tolist() == [[128, 0, 0]] * 8
    assert pictures[0][3, 2:14].tolist() == [[255, 255, 255]] * 12
    write_sheet(tmp_path / "sheet.png", pictures)
    write_animation(tmp_path / "all.gif", pictures)
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "all.gif") as animation:
        assert sheet.size == (4 * 32, 2 * 24)
        assert animation.n_frames == 4
