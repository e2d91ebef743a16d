"""Map videos: exact, of any size, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musev.errors import MediaError
from musev.media import read_video, time_frames, write_lossless
from musev.media.frame_times import read_frames


def _noise(num_frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (num_frames, height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(48, 64), (33, 51)])
def test_every_pixel_comes_back(tmp_path: Path, size: tuple[int, int]) -> None:
    path, frames_TYXC = tmp_path / "maps.mkv", _noise(9, *size)
    assert write_lossless(path, frames_TYXC, fps=8) == 9
    np.testing.assert_array_equal(np.stack(list(read_video(path))), frames_TYXC)


def test_every_frame_can_be_read_by_itself(tmp_path: Path) -> None:
    path, frames_TYXC = tmp_path / "maps.mkv", _noise(130, 16, 16)
    write_lossless(path, frames_TYXC, fps=23.976)
    times = time_frames(path)
    assert times.num_frames == 130
    got = list(read_frames(path, times, [100, 100, 129]))
    np.testing.assert_array_equal(np.stack(got), frames_TYXC[[100, 100, 129]])


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.mkv", "b.mkv")]
    for path in paths:
        write_lossless(path, _noise(5, 32, 32), fps=12.5)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_frames_of_two_sizes_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="differ in size"):
        write_lossless(tmp_path / "a.mkv", [_noise(1, 4, 4)[0], _noise(1, 4, 6)[0]], fps=8)
    assert list(tmp_path.iterdir()) == []
