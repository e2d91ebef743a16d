"""Scores beside commit records: kept by later runs, never of other bytes or damaged files."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from musev.config import to_plain
from pipelines.ledger import RESULTS, Ledger
from pipelines.scores import (
    Scored,
    picture_path,
    read_scores,
    read_statuses,
    scored_from_json,
    update_results,
    write_scores,
)
from tests.pipelines.stand_ins import request

SCORED = Scored(
    sha256="",
    version=3,
    scores={"psnr": math.inf, "seam_ratio": 1.25},
    reasons={"pck_0.1": "no pose was asked for"},
    curves={"color_drift": [0.0, None, 0.5]},
    kind="long",
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "out"))


def commit(ledger: Ledger, name: str, tmp_path: Path) -> str:
    video = tmp_path / "video.mp4"
    video.write_bytes(name.encode())
    attempt, _ = ledger.begin_attempt(name)
    record = {"request_id": name, "request": to_plain(request(name))}
    return ledger.commit(name, attempt, video, record).record["sha256"]


def metrics_of(ledger: Ledger) -> dict[str, dict[str, float] | None]:
    table = pq.read_table(io.BytesIO(ledger.store.read(RESULTS)))
    columns = zip(table["sample_id"].to_pylist(), table["metrics"].to_pylist(), strict=True)
    return {name: None if value is None else dict(value) for name, value in columns}


def test_scores_come_back_as_they_were_written() -> None:
    assert scored_from_json(SCORED.to_json()) == SCORED


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"scores": {"a": "b"}}', b"\xff"])
def test_damaged_scores_are_none(data: bytes) -> None:
    assert scored_from_json(data) is None


def test_damaged_files_and_pictures_are_left_out(ledger: Ledger) -> None:
    write_scores(ledger.store, "a" * 64, SCORED, {"frames": b"jpeg"})
    ledger.store.put("metrics/broken.json", b"{")
    assert read_scores(ledger.store) == {"a" * 64: SCORED}
    assert ledger.store.read(picture_path("a" * 64, "frames")) == b"jpeg"


def test_metrics_survive_every_later_run_and_belong_to_their_bytes(
    ledger: Ledger, tmp_path: Path
) -> None:
    digests = {name: commit(ledger, name, tmp_path) for name in ("one", "two", "three")}
    rows = [(name, name, {}) for name in digests]
    ledger.write_results(rows)
    assert set(metrics_of(ledger).values()) == {None}
    for name, digest in (("one", digests["one"]), ("two", "of another video")):
        scored = Scored(sha256=digest, version=1, scores={"flicker": 0.5})
        write_scores(ledger.store, name, scored, {})
    expected = {"one": {"flicker": 0.5}, "two": None, "three": None}
    table = update_results(ledger.store, RESULTS)
    assert table is not None
    assert metrics_of(ledger) == expected
    ledger.write_results(rows)  # a later run builds the table anew
    assert metrics_of(ledger) == expected


def test_a_place_without_a_results_table_stays_without(ledger: Ledger) -> None:
    assert update_results(ledger.store, RESULTS) is None
    assert read_statuses(ledger.store, RESULTS) == {}
    assert ledger.store.read_if_present(RESULTS) is None


def test_statuses_come_from_the_table(ledger: Ledger, tmp_path: Path) -> None:
    commit(ledger, "one", tmp_path)
    ledger.fail("two", {"request_id": "two", "status": "failed"})
    ledger.write_results([("one", "one", {}), ("two", "two", {})])
    assert read_statuses(ledger.store, RESULTS) == {"one": "committed", "two": "failed"}
