"""What the jobs share of text to pose: which rows get poses, and what is said of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from jobs._cli import load_settings
from jobs._console import Teller
from jobs._poses import Poses, give_poses, make
from musev.errors import ManifestError
from pipelines.manifest import resolve_rows
from pipelines.storage import Store
from pipelines.text_to_pose import SHIPPED, read_pose_settings

ROWS: list[dict[str, Any]] = [
    {"request_id": "waves", "prompt": "a person is waving", "condition_image": None},
    {"request_id": "jumps", "prompt": "a person is jumping", "reference_image": "face.png"},
    {"request_id": "quiet", "prompt": "a beach"},
    {"request_id": "picture", "prompt": "a person is waving", "condition_image": "first.png"},
    {"request_id": "bad", "prompt": "a person is waving", "num_frames": -3},
]


def given(folder: Path, profile: str = "mini", rows: list[dict[str, Any]] = ROWS) -> Poses:
    chosen = load_settings(profile)
    requests, _ = resolve_rows(rows, chosen.profile, str(folder))
    store = Store(str(folder / "out"))
    settings = read_pose_settings(num_steps=2)
    return give_poses(rows, requests, settings, store, chosen=chosen, base_uri=str(folder))


def test_all_rows_are_there_and_those_that_follow_poses_name_them(tmp_path: Path) -> None:
    poses = given(tmp_path)
    assert poses.settings.weights == SHIPPED
    assert [row["request_id"] for row in poses.rows] == [row["request_id"] for row in ROWS]
    named = {row["request_id"]: row.get("keypoints") for row in poses.rows}
    assert {name for name, file in named.items() if file} == {"waves", "jumps"}
    assert named["waves"] == poses.store.uri_of(poses.plan.tasks["waves"].path)
    assert poses.rows[1]["reference_image"] == "face.png"


def test_a_person_is_told_how_many_rows_have_poses_and_why_others_have_none(
    tmp_path: Path,
) -> None:
    poses = given(tmp_path)
    told = poses.lines(5, {poses.plan.tasks["waves"].path: "why"})
    assert told[0] == "poses          1 of 5 rows"
    assert sorted(line.split(",")[0] for line in told[1:]) == ["as they were   1"] * 2
    assert any("condition_image" in line for line in told)


def test_networks_that_follow_no_poses_are_told_before_any_is_made(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"2 rows could not follow poses.*ControlNet"):
        given(tmp_path, "musev")


def test_a_row_with_the_name_of_another_costs_that_one_nothing(tmp_path: Path) -> None:
    poses = given(tmp_path, rows=[*ROWS, ROWS[0]])
    assert set(poses.plan.tasks) == {"waves", "jumps"}
    assert [each.request_id for each in poses.requests] == ["waves", "jumps", "quiet", "picture"]


def test_without_rows_to_pose_no_cluster_is_joined(tmp_path: Path) -> None:
    import ray

    poses = given(tmp_path)
    none = Poses(
        settings=poses.settings,
        plan=type(poses.plan)(tasks={}, left={}),
        store=poses.store,
        rows=(),
        requests=(),
    )
    assert make(none, None, Teller(io.StringIO())) == {}
    assert not ray.is_initialized()
