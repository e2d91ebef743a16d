"""Stage: drive a long row over the pool, and join its segments to an mp4 file of this process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musev.config import EncoderConfig
from musev.errors import StorageError
from musev.media import VideoInfo, join_segments, probe_video
from pipelines.attempts import attempt_row
from pipelines.checkpoints import ClipStore
from pipelines.conductor import Conductor, ConductorConfig, PoolLostError
from pipelines.ledger import Ledger
from pipelines.outcomes import Row
from pipelines.progress import keep_telling
from pipelines.rows import request_from_json
from pipelines.scratch import scratch_folder

STAGE = "conduct"


class ConductClip:
    """Drive ready rows of long clips. Adds what the render stage adds for short ones.

    Safe to call from several threads at a time.

    Args:
        broker: Handle of the pool's broker.
        ledger: Counts attempts, keeps checkpoints and segments.
        encoder: Gives the length of segments.
        num_workers: Most workers of the pool.
        device: Of the workers, for the record.
        tell: Told (sample id, stage, done, total).
        settings: Changes to :class:`ConductorConfig`.
    """

    def __init__(
        self,
        *,
        broker: Any,
        ledger: Ledger,
        encoder: EncoderConfig,
        num_workers: int,
        device: str,
        tell: Callable[[str, str, int, int], None],
        settings: dict[str, Any] | None = None,
    ) -> None:
        self._broker = broker
        self._ledger = ledger
        self._device = device
        self._tell = tell
        self._config = ConductorConfig(
            segment_frames=encoder.segment_frames, num_workers=num_workers, **(settings or {})
        )
        self._folder = scratch_folder()

    def __call__(self, row: Row) -> Row:
        """Bring one row to its file.

        Args:
            row: Ready, with ``order``.

        Returns:
            The row with ``video_path`` and what belongs to it, or marked failed or quarantined.

        Raises:
            PoolLostError: If the pool is gone.
            StorageError: If storage does not answer.
        """
        return attempt_row(
            row,
            self._conduct,
            stage=STAGE,
            ledger=self._ledger,
            folder=self._folder,
            forgiven=(PoolLostError, StorageError),
        )

    def _conduct(self, row: Row, target: Path) -> Row:
        store = ClipStore(self._ledger, row["sample_id"])
        conductor = Conductor(
            self._broker,
            row=row,
            request=request_from_json(row["request"]),
            order=row["order"],
            store=store,
            config=self._config,
            on_progress=functools.partial(self._tell, row["sample_id"]),
        )
        row["conditions"] = conductor.counts.conditions  # filled on the way, whatever comes after
        num_segments = conductor.run()
        started = time.monotonic()
        tell = functools.partial(self._tell, row["sample_id"], "join")
        with keep_telling(functools.partial(tell, 0, num_segments)):
            measured = self._join(store, num_segments, target, tell)
        counts = conductor.counts
        seconds = {kind: round(spent, 3) for kind, spent in counts.busy_s.items()}
        return {
            "measured": measured,
            "device": self._device,
            "stage_seconds": {**seconds, "join": round(time.monotonic() - started, 3)},
            "tasks": {
                name: getattr(counts, name)
                for name in ("tasks", "resumed_tasks", "late", "lost", "duplicates", "checkpoints")
            },
        }

    def _join(
        self, store: ClipStore, count: int, target: Path, tell: Callable[[int, int], None]
    ) -> VideoInfo:
        """Fetch the segments and join them by packet copy: frames are never in memory here."""
        paths = [target.with_suffix(f".{number:06d}.mp4") for number in range(count)]
        try:
            for number, path in enumerate(paths):
                store.fetch_segment(number, path)
                tell(number + 1, count)
            join_segments(paths, target)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
        return probe_video(target)
