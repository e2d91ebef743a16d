"""Rounds on a real local Ray: what vanishes is started again, and not for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.outcomes import Row
from pipelines.progress import BoardView
from pipelines.resources import MAX_ATTEMPTS, one_row_a_block
from pipelines.rounds import Rounds, WorkersFailError, run_rounds, stream_patiently
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


def rounds(build: Any, *, silence_s: float = 60.0) -> Rounds:
    return Rounds(build=build, key="name", num_workers=1, loads="nothing", silence_s=silence_s)


def waiting(*names: str) -> dict[str, Row]:
    return {name: {"name": name} for name in names}


def test_rows_that_vanish_are_started_again_and_come_back_once(tmp_path: Path) -> None:
    once = str(tmp_path / "once")

    def build(rows: list[Row], *, board: Any) -> Any:
        assert board is not None
        Path(once).open("a").write(f"{len(rows)}\n")
        if Path(once).read_text().count("\n") == 1:
            rows = rows[:2] + rows[:1]  # one vanishes, one comes twice
        return one_row_a_block(rows)

    left, seen = waiting("a", "b", "c"), []

    def on_row(outcome: Row | None, view: BoardView) -> None:
        if outcome is not None:
            seen.append(outcome["name"])

    run_rounds(rounds(build), left, on_row)
    assert sorted(seen) == ["a", "b", "c"]
    assert left == {}
    assert Path(once).read_text().split() == ["3", "1"]


def test_rows_that_never_come_back_end_the_run(tmp_path: Path) -> None:
    tries = str(tmp_path / "tries")

    def build(rows: list[Row], *, board: Any) -> Any:
        Path(tries).open("a").write("x")
        os._exit(1)

    with pytest.raises(WorkersFailError, match=f"2 rows were started {MAX_ATTEMPTS + 1} times"):
        run_rounds(rounds(build), waiting("a", "b"), lambda outcome, view: None)
    assert len(Path(tries).read_text()) == MAX_ATTEMPTS + 1


def test_short_rows_come_back_once_and_what_never_does_is_left_over(tmp_path: Path) -> None:
    rounds_seen = tmp_path / "rounds"

    def build(rows: list[Row]) -> Any:
        with rounds_seen.open("a") as file:
            file.write(f"{len(rows)}\n")
        if len(rows) == 3:  # the first round loses two and brings one twice
            return one_row_a_block(rows[:1] * 2)
        if any(row["name"] == "b" for row in rows):
            return one_row_a_block([row for row in rows if row["name"] == "b"])
        os._exit(1)  # "c" takes its process down whenever it is alone

    left = waiting("a", "b", "c")
    found = stream_patiently(build, left, key="name", silence_s=60.0, doing="tried")
    assert [row["name"] for row in found] == ["a", "b"]
    assert list(left) == ["c"]
    assert rounds_seen.read_text().split() == ["3", "2", *["1"] * (MAX_ATTEMPTS - 2)]


def test_silence_and_reasons_are_read_from_the_board() -> None:
    """Who reports and then hangs is left behind; who says why it fails is believed."""

    def hang(rows: list[Row], *, board: Any) -> Any:
        import time

        board.worker.remote("w", "ready")
        time.sleep(600)

    with pytest.raises(WorkersFailError, match="none came back"):
        run_rounds(rounds(hang, silence_s=0.5), waiting("a"), lambda outcome, view: None)

    def complain(rows: list[Row], *, board: Any) -> Any:
        import ray

        ray.get(board.failed_to_load.remote("no such file"))
        raise OSError("no such file")

    with pytest.raises(WorkersFailError, match="could not load nothing: no such file"):
        run_rounds(rounds(complain), waiting("a"), lambda outcome, view: None)
