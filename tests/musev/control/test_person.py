"""People survive the Parquet file bit for bit, and a wrong file says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from musev.control.person import (
    PARTS,
    ROWS_AT_ONCE,
    Person,
    PoseVideo,
    PoseWriter,
    iter_poses,
    read_poses,
    scan_poses,
    write_poses,
)
from musev.errors import MediaError, RequestError


def some_person(seed: int) -> Person:
    rng = np.random.default_rng(seed)
    return Person.of(**{f"{name}_K3": rng.random((n, 3)) for name, n in PARTS.items()})


def same(one: Person, other: Person) -> bool:
    return all(np.array_equal(one.part(name), other.part(name)) for name in PARTS)


def test_people_come_back_bit_for_bit_and_empty_frames_stay_empty(tmp_path: Path) -> None:
    poses = [(), (some_person(0), some_person(1)), (), (some_person(2),), (), ()]
    video = PoseVideo(width=640, height=480, fps=23.976)
    write_poses(tmp_path / "p.parquet", poses, video)
    back = read_poses(tmp_path / "p.parquet")
    assert [len(people) for people in back] == [0, 2, 0, 1, 0, 0]
    for people, read in zip(poses, back, strict=True):
        assert all(same(one, other) for one, other in zip(people, read, strict=True))
    facts = scan_poses(tmp_path / "p.parquet")
    assert facts == PoseVideo(num_frames=6, width=640, height=480, fps=23.976)
    assert facts.aspect == pytest.approx(4 / 3)


def test_a_video_without_anybody_keeps_its_length(tmp_path: Path) -> None:
    write_poses(tmp_path / "p.parquet", [()] * 5, PoseVideo())
    assert read_poses(tmp_path / "p.parquet") == [()] * 5


def test_many_frames_are_read_in_order_across_row_groups(tmp_path: Path) -> None:
    person = some_person(0)
    frames = 2 * ROWS_AT_ONCE + 10
    with PoseWriter(tmp_path / "p.parquet", PoseVideo()) as writer:
        for frame in range(frames):
            body = person.body_K3.copy()
            body[0, 0] = frame / frames
            writer.write((Person.of(body),) * (frame % 3))
    assert pq.ParquetFile(tmp_path / "p.parquet").num_row_groups > 1
    for frame, people in enumerate(iter_poses(tmp_path / "p.parquet")):
        assert len(people) == frame % 3
        assert all(one.body_K3[0, 0] == np.float32(frame / frames) for one in people)
    assert frame == frames - 1


def test_a_hand_made_file_needs_only_frame_and_body(tmp_path: Path) -> None:
    body = [[0.1, 0.2, 1.0]] * 18
    pq.write_table(pa.table({"frame": [0, 3], "body": [body, None]}), tmp_path / "p.parquet")
    poses = read_poses(tmp_path / "p.parquet")
    assert [len(people) for people in poses] == [1, 0, 0, 1]
    assert poses[0][0].body_K3[5].tolist() == [np.float32(0.1), np.float32(0.2), 1.0]
    assert not poses[0][0].face_K3.any()
    assert not poses[3][0].body_K3.any()


def test_points_that_are_not_finite_are_missing() -> None:
    body = np.full((18, 3), 0.5)
    body[3, 0] = np.nan
    body[4, 1] = np.inf
    person = Person.of(body)
    assert np.flatnonzero(person.body_K3[:, 2] == 0).tolist() == [3, 4]
    assert np.isfinite(person.body_K3).all()


GOOD = [[0.1, 0.2, 1.0]] * 18


@pytest.mark.parametrize(
    ("columns", "phrase"),
    [
        ({"frame": [0]}, "column 'body' is missing"),
        ({"body": [GOOD]}, "column 'frame' is missing"),
        ({"frame": [1, 0], "body": [GOOD, GOOD]}, r"row 1: frame is 0 after frame 1"),
        ({"frame": [None], "body": [GOOD]}, r"row 0: frame is None"),
        ({"frame": [0], "body": [GOOD[:17]]}, r"row 0: body has shape \[17, 3\]"),
        ({"frame": [0], "body": [[[0.1, 0.2]] * 18]}, r"row 0: body has shape \[18, 2\]"),
        ({"frame": [0], "body": [[*GOOD[:17], [1.0]]]}, "row 0: body has shape"),
        ({"frame": [0], "body": [[*GOOD[:17], [0.5, 0.5, 7.0]]]}, r"point 17 of body is .*7\.0"),
        ({"frame": [0], "body": [[*GOOD[:17], [float("nan"), 0, 1]]]}, "point 17 of body is"),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, columns: dict, phrase: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(RequestError, match=phrase):
        read_poses(tmp_path / "p.parquet")


def test_something_else_is_no_keypoint_file(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(MediaError, match="not a readable Parquet file"):
        read_poses(tmp_path / "p.parquet")


def test_a_file_that_was_cut_off_is_not_readable(tmp_path: Path) -> None:
    write_poses(tmp_path / "p.parquet", [(some_person(0),)] * 50, PoseVideo())
    whole = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "p.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="not a readable Parquet file"):
        read_poses(tmp_path / "p.parquet")
