"""Keypoints in a video's place: the right people at the right frame and place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musev.control.keypoints import fit_people, read_people, time_people
from musev.control.person import Person, PoseVideo, write_poses
from musev.errors import MediaError
from musev.media import pick_frames


def person(x: float, y: float = 0.5) -> Person:
    body_K3 = np.zeros((18, 3), np.float32)
    body_K3[3] = [x, y, 0.9]
    return Person.of(body_K3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    people = [(person(n / 10),) if n != 4 else () for n in range(8)]
    write_poses(tmp_path / "people.parquet", people, PoseVideo(num_frames=8, fps=8.0))
    return tmp_path / "people.parquet"


def places(path: Path, numbers: list[int]) -> list[float | None]:
    found = read_people(path, numbers)
    return [round(float(p[0].body_K3[3, 0]), 3) if p else None for p in found]


def test_frames_come_by_number_again_and_again(path: Path) -> None:
    assert places(path, [1, 1, 3, 4, 5]) == [0.1, 0.1, 0.3, None, 0.5]
    with pytest.raises(MediaError, match="frame 8 is missing"):
        places(path, [7, 8])


def test_times_follow_the_files_rate_or_the_clips(path: Path, tmp_path: Path) -> None:
    times = time_people(path, fps=3.0)
    assert pick_frames(times, fps=4.0).tolist() == [0, 2, 4, 6]
    write_poses(tmp_path / "rateless.parquet", [()] * 5, PoseVideo())
    times = time_people(tmp_path / "rateless.parquet", fps=3.0)
    assert pick_frames(times, fps=3.0).tolist() == [0, 1, 2, 3, 4]


def test_a_file_of_no_frames_is_refused(tmp_path: Path) -> None:
    write_poses(tmp_path / "none.parquet", [], PoseVideo())
    with pytest.raises(MediaError, match="of no frame"):
        time_people(tmp_path / "none.parquet", fps=3.0)


def test_people_move_as_their_picture_is_cut() -> None:
    video = PoseVideo(num_frames=1, width=200, height=100)
    (wide,) = fit_people((person(0.75, 0.2),), video, width=64, height=64)
    np.testing.assert_allclose(wide.body_K3[3], [1.0, 0.2, 0.9], atol=1e-6)
    (tall,) = fit_people((person(0.75, 0.2),), video, width=128, height=32)
    np.testing.assert_allclose(tall.body_K3[3], [0.75, -0.1, 0.9], atol=1e-6)
    assert not wide.body_K3[4].any()
    (same,) = fit_people((person(0.75, 0.2),), PoseVideo(), width=64, height=32)
    np.testing.assert_array_equal(same.body_K3, person(0.75, 0.2).body_K3)
