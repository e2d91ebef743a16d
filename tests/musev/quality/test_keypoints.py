"""Joints of a clip from the keypoints of its request: as the control maps show them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from musev.config import ClipRequest, SamplingConfig
from musev.control.person import FramePoses, Person, PoseVideo, write_poses
from musev.control.pose_maps import draw_scaled
from musev.errors import RequestError
from musev.quality.keypoints import read_joints

REQUEST = ClipRequest(
    request_id="r",
    num_frames=4,
    fps=8.0,
    width=96,
    height=64,
    seed=1,
    profile="mini",
    sampling=SamplingConfig(),
)


def nose_at(x: float, y: float, confidence: float = 1.0) -> FramePoses:
    """A person of whom the nose alone is seen."""
    body_J3 = np.zeros((18, 3), np.float32)
    body_J3[0] = x, y, confidence
    return (Person.of(body_J3),)


def write(path: Path, poses: list[FramePoses], **facts: float) -> Path:
    values = {"width": 96, "height": 64, "fps": 8.0, **facts}
    write_poses(path, poses, PoseVideo(**values))  # type: ignore[arg-type]
    return path


def test_joints_are_in_pixels_and_visible_where_they_are_drawn(tmp_path: Path) -> None:
    poses = [nose_at(0.25, 0.5), nose_at(1.2, 0.5), nose_at(0.5, 0.5, 0.2), ()]
    path = write(tmp_path / "k.parquet", poses)
    points, visible = read_joints(path, REQUEST, 4, height=64, width=96)
    assert points.shape == (4, 18, 2)
    assert points[0, 0] == pytest.approx([23.5, 31.5])
    assert np.argwhere(visible).tolist() == [[0, 0]]


def test_frames_and_sizes_are_mapped_as_for_control_maps(tmp_path: Path) -> None:
    """Twice the rate and a square picture, of which the clip shows the middle."""
    poses = [nose_at(0.1 * t, 0.5 + 0.05 * t) for t in range(1, 9)]
    path = write(tmp_path / "k.parquet", poses, width=96, height=96, fps=16.0)
    points, visible = read_joints(path, REQUEST, 4, height=64, width=96)
    for t in range(4):
        expected = 96 * (0.1 * (2 * t + 1)) - 0.5, 32 + 96 * 0.05 * (2 * t + 1) - 0.5
        assert points[t, 0] == pytest.approx(expected, abs=1e-3), t
    assert visible[:, 0].tolist() == [True, True, True, False]  # the last one is cut away
    every = dataclasses.replace(REQUEST, sample_rate=1)
    assert read_joints(path, every, 4, height=64, width=96)[0][1, 0, 0] == pytest.approx(18.7)


def test_a_drawn_joint_is_where_it_is_said_to_be(tmp_path: Path) -> None:
    person = nose_at(0.3, 0.6)
    path = write(tmp_path / "k.parquet", [person])
    points, _ = read_joints(path, REQUEST, 1, height=64, width=96)
    drawn_YXC = draw_scaled(person, ("body",), height=64, width=96, min_confidence=0.3)
    rows, columns = np.nonzero(drawn_YXC.max(axis=-1) > 127)
    assert points[0, 0] == pytest.approx([columns.mean(), rows.mean()], abs=1)


def test_too_few_frames_and_several_people_are_refused(tmp_path: Path) -> None:
    short = write(tmp_path / "short.parquet", [nose_at(0.5, 0.5)] * 3)
    with pytest.raises(RequestError, match="3 of 4 frames"):
        read_joints(short, REQUEST, 4, height=64, width=96)
    two = write(tmp_path / "two.parquet", [nose_at(0.5, 0.5) * 2] * 4)
    with pytest.raises(RequestError, match="several people"):
        read_joints(two, REQUEST, 4, height=64, width=96)
