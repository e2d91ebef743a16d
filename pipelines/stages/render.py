"""Stage: render a row to an mp4 file in the worker's own folder (one model bundle a worker)."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from musev.config import ClipRequest, Profile
from musev.errors import MusevError
from musev.media import VideoInfo, read_image
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import QUARANTINED, READY, Row, fail_row
from pipelines.progress import Pulse
from pipelines.resources import MAX_ATTEMPTS
from pipelines.rows import request_from_json
from pipelines.scratch import scratch_folder

STAGE = "render"

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
Media = dict[str, np.ndarray | Path]
"""Manifest column to decoded picture, and ``video`` to a file on this machine."""
Render = Callable[[ClipRequest, Media, Path, OnProgress], VideoInfo]
LoadEngine = Callable[[Profile, str], Render]


class WorkerLostError(MusevError):
    """A row took its worker down again and again."""


def load_networks(profile: Profile, device: str) -> Render:
    """Load a profile's networks and return the function that renders with them.

    On the CPU one thread is used: sums come out in one order, so a clip's bytes depend neither on
    the machine's number of cores nor on the number of workers.

    Args:
        profile: Names the weights, the precision and the encoder.
        device: ``cpu`` or ``cuda``.

    Returns:
        Renders one request with its media to a file.
    """
    import torch  # on the worker, never on the driver

    from musev.models.bundle import load_bundle
    from musev.render import ClipMedia, render_clip

    if device == "cpu":
        torch.set_num_threads(1)
    bundle = load_bundle(profile.weights, device=device, precision=profile.precision)

    def render(request: ClipRequest, media: Media, target: Path, progress: OnProgress) -> VideoInfo:
        try:
            return render_clip(
                bundle,
                request,
                ClipMedia(**media),  # pyright: ignore[reportArgumentType]
                encoder=profile.encoder,
                target=target,
                on_progress=progress,
            )
        except torch.AcceleratorError:
            # The CUDA context of this process is broken; only a new process can go on.
            logger.exception("request %s broke the device", request.request_id)
            os._exit(70)

    return render


class RenderClip:
    """Render rows that are ready. Reads ``request``, ``sample_id``, ``media_digests``.

    Adds ``video_path`` (a file of this worker, removed by the commit stage), ``measured``
    (:class:`VideoInfo`), ``attempt_id``, ``attempts`` and ``stage_seconds``; or marks the row
    failed or quarantined. An attempt is counted in storage before any work is done, so a row that
    takes its worker down is known even though it left no message.

    Args:
        profile: Names weights, precision and encoder.
        device: ``cpu`` or ``cuda``.
        ledger: Counts attempts.
        cache: Holds the rows' media.
        pulse: Told of every bit of progress.
        load_engine: Builds the function that renders; called once.
    """

    def __init__(
        self,
        *,
        profile: Profile,
        device: str,
        ledger: Ledger,
        cache: MediaCache,
        pulse: Pulse,
        load_engine: LoadEngine = load_networks,
    ) -> None:
        self._ledger = ledger
        self._cache = cache
        self._device = device
        self._pulse = pulse
        self._folder = scratch_folder()
        self._render = load_engine(profile, device)

    def __call__(self, row: Row) -> Row:
        """Render one row."""
        if row["status"] != READY:
            return row
        attempt_id, number = self._ledger.begin_attempt(row["sample_id"])
        row = {**row, "attempt_id": attempt_id, "attempts": number}
        if number > MAX_ATTEMPTS:
            return fail_row(row, stage=STAGE, error=_worker_lost(), status=QUARANTINED)
        target = self._folder / f"{row['sample_id']}.mp4"
        watch = _StageWatch(row["sample_id"], self._pulse)
        try:
            request = request_from_json(row["request"])
            with self._open_media(request, json.loads(row["media_digests"])) as media:
                watch.progress("load", 1, 1)
                measured = self._render(request, media, target, watch.progress)
        except Exception as error:  # noqa: BLE001 - one bad row must not end the run
            target.unlink(missing_ok=True)
            return fail_row(row, stage=STAGE, error=error)
        return {
            **row,
            "video_path": str(target),
            "measured": measured,
            "device": self._device,
            "stage_seconds": watch.seconds(),
        }

    @contextmanager
    def _open_media(self, request: ClipRequest, digests: dict[str, str]) -> Iterator[Media]:
        uris = request.media
        video = uris.pop("video", None)
        media: Media = {
            column: read_image(self._cache.read(uri, digests[column]), name=f"{column} {uri}")
            for column, uri in uris.items()
        }
        if video is None:
            yield media
            return
        with self._cache.open_file(video, digests["video"]) as (_, path):
            yield media | {"video": path}


def _worker_lost() -> WorkerLostError:
    return WorkerLostError(
        f"the worker died {MAX_ATTEMPTS} times while rendering this row (out of memory, a crash of "
        "a library, or its machine). Look at the worker's log, try the row with a smaller size or "
        "fewer frames, then run again with --retry-failed."
    )


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
