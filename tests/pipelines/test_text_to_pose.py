"""The graph of text to pose: which rows get poses, on a real local Ray, and the new manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from musev.control.person import scan_poses
from musev.errors import WeightsError
from musev.registry import get_profile
from pipelines.manifest import resolve_rows
from pipelines.storage import Store
from pipelines.text_to_pose import (
    PosePlan,
    PoseSettings,
    make_poses,
    plan_poses,
    pose_failures,
    posed_rows,
    read_pose_settings,
)
from tests.pipelines.pose_writers import DiesOnce
from tests.pipelines.stand_ins import LAPTOP
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)
ROWS: list[dict[str, Any]] = [
    {"request_id": "waves", "prompt": "a person is waving on the beach", "num_frames": 5},
    {"request_id": "video", "prompt": "a person is waving", "video": "clip.mp4"},
    {"request_id": "image", "prompt": "a person is waving", "condition_image": "first.png"},
    {"request_id": "still", "prompt": "a person on the beach"},
    {"request_id": "lake", "prompt": "a still lake, on the left side of a road"},
    {"request_id": "jumps", "prompt": "jumping", "reference_image": "face.png", "seed": 3},
]


@pytest.fixture(scope="module")
def settings() -> PoseSettings:
    return read_pose_settings(num_steps=2, guidance=1.0)


def plan(settings: PoseSettings, rows: list[dict[str, Any]] | None = None) -> PosePlan:
    asked = ROWS if rows is None else rows
    requests, failures = resolve_rows(asked, get_profile("mini"), "/data")
    assert not failures
    return plan_poses(asked, requests, settings)


def test_rows_that_say_nothing_or_bring_their_own_stay_as_they_are(settings: PoseSettings) -> None:
    found = plan(settings)
    assert set(found.tasks) == {"waves", "jumps"}
    assert "video" in found.left["video"]
    assert "condition_image" in found.left["image"]
    assert "no action" in found.left["still"]
    assert "no action" in found.left["lake"]
    task = found.tasks["waves"]
    assert (task.num_frames, task.fps, task.width, task.height) == (5, 8.0, 128, 128)
    assert found.tasks["jumps"].seed == 3


def test_a_network_that_is_not_there_is_told() -> None:
    with pytest.raises(WeightsError, match="drawn-poses"):
        read_pose_settings("package:nobody")


def test_of_rows_with_one_name_the_first_counts(settings: PoseSettings) -> None:
    rows = [ROWS[0], {**ROWS[0], "video": "clip.mp4"}]
    requests, failures = resolve_rows(rows, get_profile("mini"), "/data")
    assert len(failures) == 1
    assert set(plan_poses(rows, requests, settings).tasks) == {"waves"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_steps", 3), ("guidance", 2.0), ("digest", "sha256:other")],
)
def test_a_file_is_named_by_what_decides_it(
    settings: PoseSettings, field: str, value: object
) -> None:
    before = plan(settings).tasks["waves"].path
    assert plan(settings).tasks["waves"].path == before
    assert plan(dataclasses.replace(settings, **{field: value})).tasks["waves"].path != before
    longer = [{**ROWS[0], "num_frames": 6}]
    assert plan(settings, longer).tasks["waves"].path != before


def test_a_manifest_names_poses_and_still_finds_its_media(settings: PoseSettings) -> None:
    store, found = Store("/out"), plan(settings)
    lost = found.tasks["jumps"].path
    rows = posed_rows(ROWS, found, {lost: "why"}, store=store, old_base="/data", new_base="/out")
    assert [row["request_id"] for row in rows] == [row["request_id"] for row in ROWS]
    assert rows[0]["keypoints"] == store.uri_of(found.tasks["waves"].path)
    assert all("keypoints" not in row for row in rows[1:])
    assert rows[1]["video"].endswith("/data/clip.mp4")
    requests, failures = resolve_rows(rows, get_profile("mini"), "/out")
    assert not failures
    assert requests[0].control == ("dwpose_body",)
    assert requests[0].num_frames == 5


@pytest.fixture(scope="module", name="ray")
def started_ray() -> Any:
    with local_ray():
        yield


@pytest.mark.usefixtures("ray")
def test_files_are_made_once_though_a_worker_dies_and_a_row_is_bad(
    settings: PoseSettings, folder: Path
) -> None:
    store = Store(str(folder / "out"))
    rows = [*ROWS, {"request_id": "bad", "prompt": "!fail jumping"}]
    found = plan(settings, rows)
    told: list[tuple[int, int]] = []

    def run() -> dict[str, str]:
        return make_poses(
            store,
            found,
            settings,
            shape=LAPTOP,
            num_workers=2,
            on_row=lambda done, total: told.append((done, total)),
            stage=DiesOnce,
        )

    failed = run()
    assert (folder / "out" / "died").exists()
    assert set(failed) == {found.tasks["bad"].path}
    assert told == [(1, 3), (2, 3), (3, 3)]
    (failure,) = pose_failures([*rows, rows[-1]], found, failed)
    assert (failure.request_id, failure.row) == ("bad", len(rows))
    assert failed[found.tasks["bad"].path] in failure.message
    for name in ("waves", "jumps"):
        path = folder / "out" / found.tasks[name].path
        assert scan_poses(path).num_frames == found.tasks[name].num_frames
        path.touch()
    told.clear()
    assert set(run()) == set(failed)
    assert told == [(1, 1)]  # only the bad one is tried again
