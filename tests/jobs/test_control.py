"""`musev control`: maps, people and previews of one video or picture, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.control import main
from musev.control.pose_embedded import EmbeddedEngine
from musev.errors import WeightsError
from musev.media import probe_video, read_image, read_video, write_segment
from tests.goldens import GOLDENS
from tests.pipelines.stand_ins import picture


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = np.zeros((9, 48, 64, 3), np.uint8)
    for number, frame_YXC in enumerate(frames):
        frame_YXC[10:30, 4 * number : 4 * number + 20] = 255
    write_segment(tmp_path / "box.mp4", frames, fps=8)
    return tmp_path / "box.mp4"


def run(output: Path, *arguments: object) -> int:
    return main([*map(str, arguments), "--output", str(output)])


def test_a_video_gives_exact_maps_and_previews(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(out, "--video", video, "--name", "canny", "--name", "tile") == 0
    expected = [cv2.Canny(frame, 100, 200) for frame in read_video(video)]
    maps = list(read_video(out / "box-canny.mkv"))
    assert len(maps) == 9
    inside = [map_YXC[..., 0].sum() for map_YXC in maps]
    assert min(inside) > 0
    assert abs(np.mean(inside) / np.mean([edges.sum() for edges in expected]) - 1) < 0.3
    np.testing.assert_array_equal(
        np.stack(list(read_video(out / "box-tile.mkv"))), np.stack(list(read_video(video)))
    )
    film = probe_video(out / "box-canny-preview.mp4")
    assert (film.width, film.height, film.num_frames, film.fps) == (128, 48, 9, 8.0)
    # Six frames, each above its map.
    assert read_image(out / "box-canny-preview.png").shape == (96, 6 * 64, 3)
    told = capsys.readouterr().out
    assert "canny: 9 frames" in told
    assert str(out / "box-tile-preview.png") in told


def test_frames_are_chosen_and_resized(tmp_path: Path, video: Path) -> None:
    out = tmp_path / "out"
    size = ("--width", 32, "--height", 32)
    assert run(out, "--video", video, "--name", "tile", "--sample-rate", 4, *size) == 0
    maps = list(read_video(out / "box-tile.mkv"))
    assert [map_YXC.shape for map_YXC in maps] == [(32, 32, 3)] * 3
    assert run(out, "--video", video, "--name", "tile", "--max-frames", 2) == 0
    assert len(list(read_video(out / "box-tile.mkv"))) == 2


def test_a_picture_gives_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, "--image", picture(tmp_path / "face.png"), "--name", "tile") == 0
    assert (read_image(out / "face-tile.png") == 100).all()
    assert read_image(out / "face-tile-preview.png").shape == (80, 40, 3)
    assert not list(out.glob("*.mp4"))


def test_people_are_followed_steadied_and_reported(tmp_path: Path) -> None:
    """A person who is gone for two frames: the gap is filled only where that is asked for."""
    portrait = GOLDENS.parent / "media" / "Mona_Lisa.jpg"
    if not portrait.is_file():
        pytest.skip(f"no reference media at {portrait.parent}")
    try:
        EmbeddedEngine().close()
    except WeightsError as error:
        pytest.skip(str(error))
    person_YXC = cv2.resize(read_image(portrait), (208, 312), interpolation=cv2.INTER_AREA)
    frames = np.stack([person_YXC] * 6)
    frames[2:4] = 0
    write_segment(tmp_path / "gap.mp4", frames, fps=8)
    out = tmp_path / "out"
    asked = ("--video", tmp_path / "gap.mp4", "--name", "dwpose_body")
    assert run(out, *asked) == 0
    report = json.loads((out / "gap-dwpose_body-people.json").read_text())
    assert report["num_frames"] == 6
    assert report["frames_without_person"] == [[2, 3]]
    assert report["limb_frames"]["neck-nose"] == 4
    maps = list(read_video(out / "gap-dwpose_body.mkv"))
    assert [bool(map_YXC.any()) for map_YXC in maps] == [True, True, False, False, True, True]

    assert run(out, *asked, "--set", "control.max_gap_frames=2") == 0
    report = json.loads((out / "gap-dwpose_body-people.json").read_text())
    assert report["frames_without_person"] == []
    assert all(map_YXC.any() for map_YXC in read_video(out / "gap-dwpose_body.mkv"))


@pytest.mark.parametrize(
    ("arguments", "status", "phrase"),
    [
        (["--name", "canny"], 2, "either --video or --image"),
        (["--image", "FACE", "--name", "cany"], 1, "Did you mean 'canny'?"),
        (["--image", "FACE", "--name", "lineart_anime"], 1, "netG.pth"),
        (["--video", "gone.mp4", "--name", "canny"], 1, "no such file"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    tmp_path: Path,
    arguments: list[str],
    status: int,
    phrase: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    face = picture(tmp_path / "face.png")
    told = [face if word == "FACE" else word for word in arguments]
    assert run(tmp_path / "out", *told) == status
    assert phrase in capsys.readouterr().err
