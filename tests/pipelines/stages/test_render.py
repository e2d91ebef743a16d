"""The render stage as a plain object, with an engine that needs no networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from musev.media import probe_video, read_video
from pipelines.progress import Board, Pulse
from pipelines.resources import MAX_ATTEMPTS
from pipelines.rows import request_to_json
from pipelines.stages.load_inputs import load_inputs
from pipelines.stages.render import RenderClip
from tests.pipelines.stand_ins import colour_engine, film, graph, picture, request


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def stage(tmp_path: Path, board: Board) -> RenderClip:
    wired = graph(tmp_path)
    return RenderClip(
        engine=colour_engine(wired.profile, "cpu"),
        device="cpu",
        ledger=wired.ledger,
        cache=wired.cache,
        pulse=Pulse(board),
    )


def ready_row(folder: Path, name: str = "one", **columns: Any) -> dict[str, Any]:
    wired = graph(folder)
    row = {"row": 0, "request": request_to_json(request(name, **columns))}
    return load_inputs(row, cache=wired.cache, name_sample=wired.name_sample)


def test_a_ready_row_becomes_a_file_of_the_asked_size_and_length(
    tmp_path: Path, stage: RenderClip, board: Board
) -> None:
    face = picture(tmp_path / "face.png")
    row = stage(ready_row(tmp_path, num_frames=5, condition_image=face))
    facts = probe_video(Path(row["video_path"]))
    assert (facts.num_frames, facts.width, facts.height) == (5, 32, 32)
    assert row["measured"] == facts
    assert row["attempts"] == 1
    assert {"load", "denoise", "decode"} == set(row["stage_seconds"])
    assert row["sample_id"] in board.view().shares


def test_a_video_reaches_the_engine_as_a_file_and_is_let_go(
    tmp_path: Path, stage: RenderClip
) -> None:
    columns = {"video": film(tmp_path / "a.mp4"), "video_is_control": True, "num_frames": 0}
    row = stage(ready_row(tmp_path, control=("openpose",), **columns))
    frames = list(read_video(Path(row["video_path"])))
    assert [round(float(frame.mean()) / 5) for frame in frames] == [20, 21, 22, 23, 24, 25]
    assert list((tmp_path / "cache" / "in_use").iterdir()) == []


def test_an_error_fails_the_row_and_leaves_the_stage_usable(
    tmp_path: Path, stage: RenderClip
) -> None:
    bad = stage(ready_row(tmp_path, prompt="!raise"))
    assert (bad["status"], bad["error_class"], bad["error_stage"]) == (
        "failed",
        "ValueError",
        "render",
    )
    assert "no such thing" in bad["error_message"]
    assert stage(ready_row(tmp_path, "two"))["status"] == "ready"


def test_a_failed_row_passes_through_untouched(tmp_path: Path, stage: RenderClip) -> None:
    row = ready_row(tmp_path, condition_image=str(tmp_path / "missing.png"))
    assert stage(row) == row


def test_the_attempt_after_the_last_allowed_one_is_a_quarantine_without_work(
    tmp_path: Path, stage: RenderClip
) -> None:
    row = ready_row(tmp_path)
    for number in range(1, MAX_ATTEMPTS + 1):
        assert stage(row)["attempts"] == number
    last = stage(row)
    assert last["status"] == "quarantined"
    assert "video_path" not in last
    assert "--retry-failed" in last["error_message"]


def test_a_picture_that_changed_since_the_check_fails_the_row(
    tmp_path: Path, stage: RenderClip
) -> None:
    face = picture(tmp_path / "face.png")
    row = ready_row(tmp_path, condition_image=face)
    picture(tmp_path / "face.png", colour=3)
    elsewhere = graph(tmp_path / "another-machine")
    stage._cache = elsewhere.cache
    failed = stage(row)
    assert failed["error_class"] == "MediaError"
    assert "changed" in failed["error_message"]
