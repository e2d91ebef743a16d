"""The stage that makes poses, as a plain object: files that the control stage can draw; no Ray."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musev.control.person import iter_poses, scan_poses
from musev.errors import StorageError
from pipelines.stages.write_poses import WritePoses, place_in_picture
from pipelines.storage import Store
from pipelines.text_to_pose import PoseTask

TASK = PoseTask(
    request_id="one",
    prompt="a person is waving",
    num_frames=20,
    fps=8.0,
    width=128,
    height=96,
    seed=5,
    num_steps=4,
    guidance=2.0,
    path="keypoints/ab/abc.parquet",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def row(**changes: Any) -> dict[str, Any]:
    return asdict(TASK) | changes


def test_a_row_becomes_a_file_of_one_person_a_frame(store: Store, tmp_path: Path) -> None:
    stage = WritePoses(store=store, weights="package:drawn-poses")
    assert stage(row()) == {"path": TASK.path, "status": "ready", "reason": ""}
    path = tmp_path / "out" / TASK.path
    video = scan_poses(path)
    assert (video.num_frames, video.width, video.height, video.fps) == (20, 128, 96, 8.0)
    frames = list(iter_poses(path))
    assert [len(people) for people in frames] == [1] * 20
    body_K3 = np.stack([people[0].body_K3 for people in frames])
    assert (body_K3[:, 1, 2] == 1).all()  # the neck is always seen
    assert (body_K3[body_K3[..., 2] == 0] == 0).all()


def test_the_same_row_gives_the_same_bytes_and_what_is_there_stays(
    store: Store, tmp_path: Path
) -> None:
    stage = WritePoses(store=store, weights="package:drawn-poses")
    stage(row())
    stage(row(path="keypoints/ab/again.parquet"))
    stage(row(path="keypoints/ab/other.parquet", seed=6))
    first, again, other = (
        (tmp_path / "out" / "keypoints" / "ab" / f"{name}.parquet").read_bytes()
        for name in ("abc", "again", "other")
    )
    assert first == again
    assert first != other
    stage(row(seed=6))
    assert (tmp_path / "out" / TASK.path).read_bytes() == first


def test_a_bad_row_costs_itself_alone_and_trouble_of_storage_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = WritePoses(store=store, weights="package:drawn-poses")
    outcome = stage(row(num_frames="many"))
    assert outcome["status"] == "failed"
    assert outcome["reason"]

    def silent(self: Store, path: str, source: Path) -> bool:
        raise StorageError("does not answer")

    monkeypatch.setattr(Store, "create_from_file", silent)
    with pytest.raises(StorageError):
        stage(row())


@pytest.mark.parametrize(
    ("width", "height", "corners"),
    [
        (100, 100, ((0, 0), (1, 1))),
        (200, 100, ((0.25, 0), (0.75, 1))),  # in the middle
        (100, 200, ((0, 0.5), (1, 1))),  # on the lower edge
    ],
)
def test_a_square_finds_its_place_in_any_picture(
    width: int, height: int, corners: tuple[tuple[float, float], ...]
) -> None:
    points_TK3 = np.array([[[0, 0, 1], [1, 1, 1], [0.5, 0.5, 0]]], np.float32)
    placed = place_in_picture(points_TK3, width=width, height=height)
    np.testing.assert_allclose(placed[0, :2, :2], corners)
    assert placed[0, 2].tolist() == [0, 0, 0]
