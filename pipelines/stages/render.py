"""Stage: render a row to an mp4 file in the worker's own folder (one engine a worker)."""

from __future__ import annotations

import time
from pathlib import Path

from pipelines.attempts import attempt_row
from pipelines.clip_media import open_media
from pipelines.engines import Engine
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import READY, Row
from pipelines.progress import Pulse
from pipelines.rows import request_from_json
from pipelines.scratch import scratch_folder

STAGE = "render"


class RenderClip:
    """Render rows that are ready. Reads ``request``, ``sample_id``, ``media_digests``.

    Adds ``video_path`` (a file of this worker, removed by the commit stage), ``measured``
    (:class:`VideoInfo`), ``attempt_id``, ``attempts`` and ``stage_seconds``; or marks the row
    failed or quarantined; see :func:`pipelines.attempts.attempt_row`.

    Args:
        engine: Renders.
        device: ``cpu`` or ``cuda``, for the record.
        ledger: Counts attempts.
        cache: Holds the rows' media.
        pulse: Told of every bit of progress.
    """

    def __init__(
        self, *, engine: Engine, device: str, ledger: Ledger, cache: MediaCache, pulse: Pulse
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._cache = cache
        self._device = device
        self._pulse = pulse
        self._folder = scratch_folder()

    def __call__(self, row: Row) -> Row:
        """Render one row."""
        if row["status"] != READY:
            return row
        return attempt_row(row, self._render, stage=STAGE, ledger=self._ledger, folder=self._folder)

    def _render(self, row: Row, target: Path) -> Row:
        watch = _StageWatch(row["sample_id"], self._pulse)
        request = request_from_json(row["request"])
        with open_media(
            self._cache, request, row["media_digests"], row.get("control_maps", "")
        ) as media:
            watch.progress("load", 1, 1)
            measured = self._engine.render(request, media, target, watch.progress)
        return {"measured": measured, "device": self._device, "stage_seconds": watch.seconds()}


class _StageWatch:
    """Passes progress on and adds up the seconds of each stage."""

    def __init__(self, sample_id: str, pulse: Pulse) -> None:
        self._sample_id = sample_id
        self._pulse = pulse
        self._seconds: dict[str, float] = {}
        self._since = time.monotonic()
        pulse.row(sample_id, "load", 0, 1)

    def progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._since = now
        self._pulse.row(self._sample_id, stage, done, total)

    def seconds(self) -> dict[str, float]:
        return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}
