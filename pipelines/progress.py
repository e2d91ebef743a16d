"""What the workers are doing right now, and the one line a person reads about it.

The board is a plain object; the graph runs it as a small Ray actor that workers report to.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

logger = logging.getLogger(__name__)

REPORT_S = 1.0
"""Progress of a row is reported at most this often."""
PULSE_S = 5.0
"""A worker says this often that it lives."""
RECENT_S = 6 * PULSE_S
"""A worker that has said nothing for so long is not counted as ready."""
HANG_S = 6 * 3600.0
"""Longest step of a row that counts as work: one step of 100,000 frames takes under two hours."""
_DECODE_SHARE = 0.1  # of a clip's time; only the estimate of the time left depends on it


class Signs(Protocol):
    """Where workers report to: a :class:`Board`, or something that passes it on."""

    def worker(self, name: str, state: str) -> None:
        """Note a worker's sign of life."""
        ...

    def row(self, sample_id: str, stage: str, done: int, total: int) -> None:
        """Note how far a row is."""
        ...


@dataclass(frozen=True, kw_only=True)
class BoardView:
    """The board at one moment."""

    shares: dict[str, float]
    """Sample id to the share of the clip that is finished, of every row in work."""
    workers_ready: int
    """Workers that have loaded their networks and showed life a short while ago."""
    silent_s: float | None
    """Seconds since any worker was last seen loading or working; None before the first sign."""
    fruitless_starts: int
    """Workers started since one last managed to load its networks."""
    load_error: str
    """Why a worker could not load its networks; empty if none has said so."""


class Board:
    """Collects what workers say about themselves and about their rows."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._ready: dict[str, float] = {}
        self._last_sign: float | None = None
        self._fruitless_starts = 0
        self._load_error = ""

    def worker(self, name: str, state: str) -> None:
        """Note a worker's state: ``starting``, ``loading``, ``ready``, ``working`` or ``idle``."""
        now = time.monotonic()
        if state != "idle":
            self._last_sign = now
        if state == "starting":
            self._fruitless_starts += 1
        elif state == "ready":
            self._fruitless_starts = 0
        if state in ("ready", "working", "idle"):
            self._ready[name] = now

    def row(self, sample_id: str, stage: str, done: int, total: int) -> None:
        """Note how far a row is; stage ``finished`` takes it off the board."""
        self._last_sign = time.monotonic()
        if stage == "finished":
            self._shares.pop(sample_id, None)
        else:
            self._shares[sample_id] = clip_share(stage, done, total)

    def failed_to_load(self, message: str) -> None:
        """Note why a worker could not load its networks."""
        self._load_error = message

    def view(self) -> BoardView:
        """Sum up."""
        now = time.monotonic()
        return BoardView(
            shares=dict(self._shares),
            workers_ready=sum(now - seen <= RECENT_S for seen in self._ready.values()),
            silent_s=None if self._last_sign is None else now - self._last_sign,
            fruitless_starts=self._fruitless_starts,
            load_error=self._load_error,
        )


class Pulse:
    """A worker's voice: says that it lives, and ends it when its row stands still.

    A worker that hangs would hold its GPU for ever; one that ends is started again by Ray.

    Args:
        signs: Where to report.
        hang_s: Without any progress on its row for so long, the process ends itself.
        period_s: Seconds between two signs.
    """

    def __init__(self, signs: Signs, *, hang_s: float = HANG_S, period_s: float = PULSE_S) -> None:
        self._signs = signs
        self._hang_s = hang_s
        self._period_s = period_s
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._state = "loading"
        self._progress_at = self._reported_at = 0.0
        signs.worker(self._name, "starting")
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def ready(self) -> None:
        """Say that the networks are loaded."""
        self._state = "idle"
        self._signs.worker(self._name, "ready")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count as working inside the ``with`` block."""
        self._progress_at = time.monotonic()
        self._state = "working"
        try:
            yield
        finally:
            self._state = "idle"

    def row(self, sample_id: str, stage: str, done: int, total: int) -> None:
        """Note progress on a row; passed on once a second at most."""
        self._progress_at = now = time.monotonic()
        if now - self._reported_at >= REPORT_S:
            self._reported_at = now
            self._signs.row(sample_id, stage, done, total)

    def _beat(self) -> None:
        while True:
            time.sleep(self._period_s)
            state = self._state
            self._signs.worker(self._name, state)
            still_s = time.monotonic() - self._progress_at
            if state == "working" and still_s > self._hang_s:
                logger.critical("no progress on a row for %.0f s: ending this worker", still_s)
                os._exit(71)


@contextmanager
def keep_telling(
    tell: Callable[[], None], *, period_s: float = PULSE_S, hang_s: float = HANG_S
) -> Iterator[None]:
    """Tell again and again that a row is in work, for work that says nothing by itself.

    Args:
        tell: Called from a thread that ends with the ``with`` block.
        period_s: Seconds between two calls.
        hang_s: Silent after so long: work that hangs must look like a standstill.
    """
    ended = threading.Event()
    silent_from = time.monotonic() + hang_s

    def beat() -> None:
        while not ended.wait(period_s) and time.monotonic() < silent_from:
            tell()

    thread = threading.Thread(target=beat, name="keep-telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def clip_share(stage: str, done: int, total: int) -> float:
    """Share of a clip's work that is finished, 0 to 1, judged by its stage."""
    part = done / total if total else 0.0
    if stage == "denoise":
        return part * (1 - _DECODE_SHARE)
    if stage == "decode":
        return (1 - _DECODE_SHARE) + part * _DECODE_SHARE
    # All frames are there already: what is told of these says only that they go on.
    return 1.0 if stage in ("join", "commit") else 0.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Counts of a run at one moment; frames are counted of the rows this run renders."""

    num_rows: int
    rows_done: int
    rows_failed: int
    num_frames: int
    frames_done: float
    elapsed_s: float
    workers_ready: int = 0
    num_workers: int = 0

    @property
    def frames_per_s(self) -> float:
        """Frames finished a second since rendering began."""
        return self.frames_done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Estimated seconds left; None before there is anything to judge by."""
        if self.frames_per_s <= 0:
            return None
        return (self.num_frames - self.frames_done) / self.frames_per_s

    def line(self) -> str:
        """Say it in one line."""
        counts = f"{self.rows_done}/{self.num_rows} rows done, {self.rows_failed} failed"
        if self.frames_done <= 0 and self.workers_ready == 0:
            return (
                f"{counts}; waiting for {self.num_workers} workers to start and load the networks"
            )
        left = "" if self.left_s is None else f", about {describe_seconds(self.left_s)} left"
        rate = f"{self.frames_per_s:.2g}" if self.frames_per_s < 10 else f"{self.frames_per_s:.0f}"
        return (
            f"{counts}; {self.frames_done:.0f}/{self.num_frames} frames, {rate} frames/s on "
            f"{self.workers_ready} of {self.num_workers} workers{left}"
        )


class Meter:
    """Turns outcomes and the board into counts; the clock starts with the first ready worker.

    Args:
        num_frames: Sample id to frames, of every row this run renders.
        num_workers: Workers asked for.
    """

    def __init__(self, num_frames: dict[str, int], *, num_workers: int) -> None:
        self._num_frames = num_frames
        self._num_workers = num_workers
        self._started: float | None = None

    def measure(self, outcomes: Sequence[Mapping[str, Any]], view: BoardView) -> Progress:
        """Count what is done.

        Args:
            outcomes: Rows that have ended: ``sample_id`` and ``status``.
            view: The board.

        Returns:
            The counts at this moment.
        """
        now = time.monotonic()
        if self._started is None and (view.workers_ready or outcomes):
            self._started = now
        ended = {row["sample_id"] for row in outcomes}
        failed = {row["sample_id"] for row in outcomes if row["status"] != "committed"}
        frames = sum(self._num_frames[name] for name in ended - failed)
        partly = {name: share for name, share in view.shares.items() if name not in ended}
        lost = sum(self._num_frames[name] for name in failed)
        return Progress(
            num_rows=len(self._num_frames),
            rows_done=len(ended),
            rows_failed=len(failed),
            num_frames=sum(self._num_frames.values()) - lost,
            frames_done=frames + sum(self._num_frames[name] * s for name, s in partly.items()),
            elapsed_s=0.0 if self._started is None else now - self._started,
            workers_ready=view.workers_ready,
            num_workers=self._num_workers,
        )


def describe_seconds(seconds: float) -> str:
    """Write a duration as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
