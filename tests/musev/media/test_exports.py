from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from musev.errors import MediaError
from musev.media import read_video, write_segment
from musev.media.exports import export_video


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Four frames of 64 x 48, each of another grey, with a bright corner."""
    frames_TYXC = np.full((4, 48, 64, 3), 30, np.uint8)
    for number, frame_YXC in enumerate(frames_TYXC):
        frame_YXC += np.uint8(50 * number)
        frame_YXC[:16, :16] = (200, 40, 40)
    write_segment(tmp_path / "v.mp4", iter(frames_TYXC), fps=8)
    return tmp_path / "v.mp4"


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_shows_every_frame_for_its_time(video: Path, tmp_path: Path, kind) -> None:
    target = tmp_path / f"v.{kind}"
    export_video(video, target, kind, fps=8)
    with Image.open(target) as animation:
        assert animation.format == kind.upper()
        assert animation.n_frames == 4
        assert animation.info["loop"] == 0
        shown = []
        for number in range(4):
            animation.seek(number)
            shown.append(np.asarray(animation.convert("RGB")))
            assert abs(animation.info["duration"] - 125) <= 5  # a GIF counts hundredths
    tolerance = 0 if kind == "webp" else 8
    for found_YXC, frame_YXC in zip(shown, read_video(video), strict=True):
        assert np.abs(found_YXC.astype(int) - frame_YXC).max() <= tolerance


def test_pictures_are_the_frames(video: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0009.png").write_bytes(b"of an earlier, longer video")
    export_video(video, tmp_path / "frames", "images", fps=8)
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "0003.png"]
    for name, frame_YXC in zip(names, read_video(video), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "frames" / name)), frame_YXC)


@pytest.mark.parametrize("kind", ["gif", "webp", "images"])
def test_a_video_that_cannot_be_read_leaves_nothing(tmp_path: Path, kind) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError):
        export_video(tmp_path / "v.mp4", tmp_path / "out", kind, fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
