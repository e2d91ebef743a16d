"""The commit stage as a plain object over a local ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from musev.errors import StorageError
from musev.media import VideoInfo
from pipelines.ledger import Ledger, video_path
from pipelines.outcomes import fail_row
from pipelines.rows import request_to_json, results_row
from pipelines.stages.commit import CommitClip
from tests.pipelines.stand_ins import request

SAMPLE = "ab" * 32


def rendered_row(folder: Path, ledger: Ledger, content: bytes = b"mp4") -> dict[str, Any]:
    path = folder / "clip.mp4"
    path.write_bytes(content)
    attempt = ledger.begin_attempt(SAMPLE)
    return {
        "row": 2,
        "request": request_to_json(request("one", prompt="a woman")),
        "sample_id": SAMPLE,
        "media_digests": json.dumps({"condition_image": "sha256:1"}),
        "status": "ready",
        "error_class": "",
        "error_stage": "",
        "error_message": "",
        "attempt_id": attempt.id,
        "attempts": attempt.number,
        "video_path": str(path),
        "measured": VideoInfo(
            width=32, height=32, num_frames=3, fps=4.0, duration_s=0.75, codec="h264"
        ),
        "device": "cpu",
        "stage_seconds": {"denoise": 1.5},
    }


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "out"))


def test_a_rendered_row_is_committed_with_all_that_readers_need(
    tmp_path: Path, ledger: Ledger
) -> None:
    stage = CommitClip(ledger=ledger, model_digests={"unet": "sha256:2"})
    row = stage(rendered_row(tmp_path, ledger))
    record = results_row(ledger.committed()[SAMPLE])
    assert row["status"] == record["status"] == "committed"
    assert (tmp_path / "out" / video_path(SAMPLE)).read_bytes() == b"mp4"
    assert not (tmp_path / "clip.mp4").exists()
    assert record["model_digests"] == {"unet": "sha256:2"}
    assert record["prompt"] == "a woman"
    assert (record["num_frames"], record["duration_s"], record["codec"]) == (3, 0.75, "h264")
    assert "python" in record["versions"]


def test_only_small_plain_values_go_back_to_the_driver(tmp_path: Path, ledger: Ledger) -> None:
    row = CommitClip(ledger=ledger, model_digests={})(rendered_row(tmp_path, ledger))
    assert all(isinstance(value, str | int | float) for value in row.values())
    assert row["row"] == 2
    assert row["num_frames"] == 3


def test_a_second_commit_of_the_same_sample_is_a_success_that_changes_nothing(
    tmp_path: Path, ledger: Ledger
) -> None:
    stage = CommitClip(ledger=ledger, model_digests={})
    stage(rendered_row(tmp_path, ledger))
    before = ledger.committed()
    again = stage(rendered_row(tmp_path, ledger, content=b"other bytes"))
    assert again["status"] == "committed"
    assert ledger.committed() == before
    assert (tmp_path / "out" / video_path(SAMPLE)).read_bytes() == b"mp4"


def test_a_failed_row_becomes_a_failure_record_and_no_video(tmp_path: Path, ledger: Ledger) -> None:
    row = fail_row(rendered_row(tmp_path, ledger), stage="render", error=ValueError("why"))
    out = CommitClip(ledger=ledger, model_digests={})(row)
    record = ledger.failures()[SAMPLE]
    assert out["status"] == record["status"] == "failed"
    assert (record["error_class"], record["error_stage"]) == ("ValueError", "render")
    assert "ValueError: why" in record["error_traceback"]
    assert ledger.committed() == {}


def test_silent_storage_is_raised_and_does_not_count_against_the_row(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: Any) -> None:
        raise StorageError("no answer")

    row = rendered_row(tmp_path, ledger)
    monkeypatch.setattr(Ledger, "commit", silent)
    with pytest.raises(StorageError, match="no answer"):
        CommitClip(ledger=ledger, model_digests={})(row)
    assert ledger.begin_attempt(SAMPLE).number == 1
    assert ledger.failures() == {}
