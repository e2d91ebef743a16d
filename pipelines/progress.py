"""What the workers are doing right now, and the one line a person reads about it.

The board is a plain object; the graph runs it as a small Ray actor that workers report to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

_DECODE_SHARE = 0.1  # of a clip's time; only the estimate of the time left depends on it


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The last sign of life about one row."""

    stage: str
    done: int
    total: int
    age_s: float = 0.0

    @property
    def share(self) -> float:
        """Share of the clip that is finished, 0 to 1."""
        part = self.done / self.total if self.total else 0.0
        if self.stage == "denoise":
            return part * (1 - _DECODE_SHARE)
        if self.stage == "decode":
            return (1 - _DECODE_SHARE) + part * _DECODE_SHARE
        return 0.0


class Board:
    """Collects beats by sample id."""

    def __init__(self) -> None:
        self._beats: dict[str, tuple[float, Beat]] = {}

    def report(self, sample_id: str, stage: str, done: int, total: int) -> None:
        """Note a sign of life; stage ``finished`` takes the row off the board."""
        if stage == "finished":
            self._beats.pop(sample_id, None)
        else:
            beat = Beat(stage=stage, done=done, total=total)
            self._beats[sample_id] = (time.monotonic(), beat)

    def beats(self) -> dict[str, Beat]:
        """Every row in work, with the age of its last sign of life."""
        now = time.monotonic()
        return {
            sample_id: replace(beat, age_s=now - seen)
            for sample_id, (seen, beat) in self._beats.items()
        }


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Counts of a run at one moment; frames are counted of the rows this run renders."""

    num_rows: int
    rows_done: int
    rows_failed: int
    num_frames: int
    frames_done: float
    elapsed_s: float
    workers_busy: int = 0

    @property
    def frames_per_s(self) -> float:
        """Frames finished a second since rendering began."""
        return self.frames_done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Estimated seconds left; None before there is anything to judge by."""
        if self.frames_done <= 0:
            return None
        return (self.num_frames - self.frames_done) / self.frames_per_s

    def line(self) -> str:
        """Say it in one line."""
        left = "" if self.left_s is None else f", about {describe_seconds(self.left_s)} left"
        rate = f"{self.frames_per_s:.2g}" if self.frames_per_s < 10 else f"{self.frames_per_s:.0f}"
        return (
            f"{self.rows_done}/{self.num_rows} rows done, {self.rows_failed} failed, "
            f"{self.workers_busy} in work; {self.frames_done:.0f}/{self.num_frames} frames, "
            f"{rate} frames/s{left}"
        )


def describe_seconds(seconds: float) -> str:
    """Write a duration as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
