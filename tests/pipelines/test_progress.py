"""What the board says, the arithmetic behind the progress line, and the line itself."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from pipelines.progress import (
    Board,
    BoardView,
    Meter,
    Progress,
    Pulse,
    clip_share,
    describe_seconds,
    keep_telling,
)


def view(**values: object) -> BoardView:
    defaults = {
        "shares": {},
        "workers_ready": 1,
        "silent_s": 0.0,
        "fruitless_starts": 0,
        "load_error": "",
    }
    return BoardView(**{**defaults, **values})  # type: ignore[arg-type]


def test_a_finished_row_leaves_the_board() -> None:
    board = Board()
    board.row("a", "denoise", 1, 10)
    board.row("b", "decode", 5, 10)
    board.row("a", "denoise", 2, 10)
    board.row("b", "finished", 1, 1)
    assert board.view().shares == {"a": clip_share("denoise", 2, 10)}


def test_starts_without_a_loaded_network_are_counted_until_one_succeeds() -> None:
    board = Board()
    for name in ("a", "b"):
        board.worker(name, "starting")
    assert (board.view().fruitless_starts, board.view().workers_ready) == (2, 0)
    board.worker("b", "ready")
    assert (board.view().fruitless_starts, board.view().workers_ready) == (0, 1)


def test_idle_workers_do_not_hide_a_standstill(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: now[0])
    board = Board()
    assert board.view().silent_s is None
    board.worker("a", "working")
    now[0] += 50
    board.worker("a", "idle")
    assert board.view().silent_s == 50
    assert board.view().workers_ready == 1
    board.worker("a", "working")
    assert board.view().silent_s == 0


def test_a_pulse_says_what_its_worker_is_doing() -> None:
    said: list[str] = []
    twice = threading.Event()

    class Ear:
        def worker(self, name: str, state: str) -> None:
            said.append(state)
            if said.count("working") >= 2:
                twice.set()

        def row(self, *_: object) -> None: ...

    pulse = Pulse(Ear(), period_s=0.01)
    pulse.ready()
    with pulse.working():
        assert twice.wait(20)
    assert said[0] == "starting"
    assert "ready" in said


def test_a_worker_whose_row_stands_still_ends_itself() -> None:
    code = (
        "import time\n"
        "from pipelines.progress import Board, Pulse\n"
        "pulse = Pulse(Board(), hang_s=0.2, period_s=0.05)\n"
        "pulse.ready()\n"
        "time.sleep(1)\n"  # idle for longer than hang_s: nothing happens
        "print('still here', flush=True)\n"
        "with pulse.working():\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "still here\n"
    assert done.returncode == 71


def test_share_grows_from_nothing_to_all() -> None:
    shares = [
        clip_share(*beat)
        for beat in (("load", 0, 1), ("denoise", 5, 10), ("denoise", 10, 10), ("decode", 3, 3))
    ]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)


@pytest.mark.parametrize("stage", ["join", "commit"])
def test_a_clip_that_is_joined_or_committed_does_not_fall_back(stage: str) -> None:
    assert clip_share(stage, 0, 6) >= clip_share("decode", 6, 6)


@pytest.mark.parametrize("error", [None, ValueError("no such thing")])
def test_silent_work_is_told_until_its_end_be_it_an_error(error: Exception | None) -> None:
    twice, told = threading.Event(), []

    def tell() -> None:
        told.append(threading.current_thread())
        if len(told) == 2:
            twice.set()

    raised = None
    try:
        with keep_telling(tell, period_s=0.01):
            assert twice.wait(20)
            if error:
                raise error
    except ValueError as caught:
        raised = caught
    assert raised is error
    assert not told[0].is_alive()


def test_work_that_hangs_is_told_no_longer() -> None:
    told: list[float] = []
    with keep_telling(lambda: told.append(time.monotonic()), period_s=0.01, hang_s=0.0):
        time.sleep(0.1)
    assert not told


def test_time_left_is_frames_left_over_frames_a_second() -> None:
    progress = Progress(
        num_rows=10,
        rows_done=4,
        rows_failed=1,
        num_frames=100,
        frames_done=40,
        elapsed_s=20,
        workers_ready=2,
        num_workers=3,
    )
    assert progress.frames_per_s == 2
    assert progress.left_s == 30
    assert progress.line() == (
        "4/10 rows done, 1 failed; 40/100 frames, 2 frames/s on 2 of 3 workers, about 30 s left"
    )


def test_before_the_first_frame_no_time_is_promised() -> None:
    progress = Progress(
        num_rows=1,
        rows_done=0,
        rows_failed=0,
        num_frames=9,
        frames_done=0,
        elapsed_s=0,
        num_workers=4,
    )
    assert progress.left_s is None
    assert "waiting for 4 workers" in progress.line()


@pytest.mark.parametrize(("frames_done", "elapsed_s"), [(5, 0), (0, 5), (0, 0), (5, 5)])
def test_a_line_can_be_told_at_any_moment(frames_done: float, elapsed_s: float) -> None:
    progress = Progress(
        num_rows=1,
        rows_done=0,
        rows_failed=0,
        num_frames=9,
        frames_done=frames_done,
        elapsed_s=elapsed_s,
        workers_ready=1,
        num_workers=1,
    )
    assert "0/1 rows done" in progress.line()
    assert ("left" in progress.line()) == (frames_done > 0 and elapsed_s > 0)


def test_the_meter_counts_whole_rows_part_rows_and_leaves_failed_frames_out() -> None:
    meter = Meter({"a": 10, "b": 20, "c": 30}, num_workers=2)
    outcomes = [
        {"sample_id": "a", "status": "committed"},
        {"sample_id": "b", "status": "failed"},
    ]
    shares = {"a": 0.5, "c": 0.5}  # the board may still show a row that has just ended
    progress = meter.measure(outcomes, view(shares=shares))
    assert (progress.rows_done, progress.rows_failed, progress.num_rows) == (2, 1, 3)
    assert (progress.frames_done, progress.num_frames) == (25, 40)


def test_the_clock_starts_with_the_first_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: now[0])
    meter = Meter({"a": 10}, num_workers=1)
    assert meter.measure([], view(workers_ready=0)).elapsed_s == 0
    now[0] = 60  # a minute of loading networks is not held against the frame rate
    assert meter.measure([], view()).elapsed_s == 0
    now[0] = 65
    assert meter.measure([], view(shares={"a": 0.5})).frames_per_s == 1


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.4, "12 s"), (119, "2 min"), (7200, "2.0 h"), (0, "0 s")]
)
def test_durations_read_naturally(seconds: float, words: str) -> None:
    assert describe_seconds(seconds) == words
