"""Arithmetic behind the progress line, and the line itself."""

from __future__ import annotations

import pytest

from pipelines.progress import Beat, Board, Progress, describe_seconds


def test_a_finished_row_leaves_the_board() -> None:
    board = Board()
    board.report("a", "denoise", 1, 10)
    board.report("b", "decode", 5, 10)
    board.report("a", "denoise", 2, 10)
    board.report("b", "finished", 1, 1)
    (beat,) = board.beats().values()
    assert (beat.stage, beat.done, beat.total) == ("denoise", 2, 10)
    assert beat.age_s >= 0


def test_share_grows_from_nothing_to_all() -> None:
    beats = [("load", 0, 1), ("denoise", 5, 10), ("denoise", 10, 10), ("decode", 3, 3)]
    shares = [Beat(stage=stage, done=done, total=total).share for stage, done, total in beats]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)


def test_time_left_is_frames_left_over_frames_a_second() -> None:
    progress = Progress(
        num_rows=10,
        rows_done=4,
        rows_failed=1,
        num_frames=100,
        frames_done=40,
        elapsed_s=20,
        workers_busy=2,
    )
    assert progress.frames_per_s == 2
    assert progress.left_s == 30
    assert progress.line() == (
        "4/10 rows done, 1 failed, 2 in work; 40/100 frames, 2 frames/s, about 30 s left"
    )


def test_before_the_first_frame_no_time_is_promised() -> None:
    progress = Progress(
        num_rows=1, rows_done=0, rows_failed=0, num_frames=9, frames_done=0, elapsed_s=0
    )
    assert progress.left_s is None
    assert "left" not in progress.line()


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.4, "12 s"), (119, "2 min"), (7200, "2.0 h"), (0, "0 s")]
)
def test_durations_read_naturally(seconds: float, words: str) -> None:
    assert describe_seconds(seconds) == words
