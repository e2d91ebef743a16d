"""An attempt at a row: counted first, and ended in order whatever the work does."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from musev.errors import StorageError
from pipelines.attempts import Work, attempt_row
from pipelines.ledger import Ledger
from pipelines.outcomes import READY, Row, worker_lost
from pipelines.resources import MAX_ATTEMPTS

ROW: Row = {"row": 0, "sample_id": "ab" * 32, "status": READY}


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(f"memory://{uuid.uuid4().hex}/out")


def attempt(ledger: Ledger, folder: Path, work: Work) -> Row:
    return attempt_row(
        ROW, work, stage="test", ledger=ledger, folder=folder, forgiven=(StorageError,)
    )


def failing(error: Exception) -> Work:
    """Work that gets half way."""

    def work(row: Row, target: Path) -> Row:
        target.write_bytes(b"half a video")
        row["known"] = "by then"
        raise error

    return work


def begun(ledger: Ledger) -> int:
    return len(ledger.store.list(f"work/{ROW['sample_id']}/attempts"))


def test_an_attempt_is_on_record_before_any_work(ledger: Ledger, tmp_path: Path) -> None:
    seen: list[Any] = []

    def work(row: Row, target: Path) -> Row:
        seen.append((begun(ledger), row["attempts"]))
        row["known"] = "on the way"
        target.write_bytes(b"video")
        return {"added": 1}

    row = attempt(ledger, tmp_path, work)
    assert seen == [(1, 1)]
    assert Path(row["video_path"]).read_bytes() == b"video"
    assert (row["status"], row["added"], row["known"]) == (READY, 1, "on the way")
    assert "known" not in ROW, "the row of the caller is its own"


def test_a_failure_leaves_its_reason_and_no_file(ledger: Ledger, tmp_path: Path) -> None:
    row = attempt(ledger, tmp_path, failing(ValueError("no such thing")))
    assert (row["status"], row["error_stage"]) == ("failed", "test")
    assert "no such thing" in row["error_message"]
    assert row["known"] == "by then"
    assert "video_path" not in row
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_kills_its_workers_quarantines_the_row(ledger: Ledger, tmp_path: Path) -> None:
    assert attempt(ledger, tmp_path, failing(worker_lost(3)))["status"] == "quarantined"


def test_too_many_attempts_end_the_row_without_work(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(1, MAX_ATTEMPTS + 1):
        assert attempt(ledger, tmp_path, lambda *_: {})["attempts"] == number
    row = attempt(ledger, tmp_path, lambda *_: pytest.fail("it was tried once more"))
    assert row["status"] == "quarantined"


def test_what_is_not_the_rows_fault_is_raised_and_not_counted(
    ledger: Ledger, tmp_path: Path
) -> None:
    with pytest.raises(StorageError):
        attempt(ledger, tmp_path, failing(StorageError("silent")))
    assert begun(ledger) == 0
    assert list(tmp_path.iterdir()) == []
