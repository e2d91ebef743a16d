"""Stage: fetch a row's media once, check and measure them, and name the sample (CPU)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

from musev.config import ClipRequest
from musev.errors import MediaError, RequestError
from musev.media import count_resampled, read_image, scan_video
from pipelines.media_cache import MediaCache
from pipelines.outcomes import READY, Row, fail_row, unsampled_id
from pipelines.rows import request_from_json, request_to_json

STAGE = "load_inputs"
NameSample = Callable[[ClipRequest, Mapping[str, str]], str]


def load_inputs(row: Row, *, cache: MediaCache, name_sample: NameSample) -> Row:
    """Check a row's pictures and video before any GPU is held.

    Reads ``request`` and completes it: a length that the video decides is known from here on. Adds
    ``sample_id``, ``media_digests`` (JSON) and ``status``: ``ready``, or ``failed`` with the
    ``error_*`` columns. The media themselves stay in the machine's cache.

    Args:
        row: One row.
        cache: Fetches media.
        name_sample: Request and digests of its media to sample id.

    Returns:
        The row with the columns named above.
    """
    request = request_from_json(row["request"])
    try:
        digests = {}
        for column, uri in request.media.items():
            if column == "video":
                digests[column], request = _measure_video(request, uri, cache)
            else:
                digests[column], content = cache.fetch(uri)
                read_image(content, name=f"{column} {uri}")
        sample_id = name_sample(request, digests)
    except Exception as error:  # noqa: BLE001 - one bad row must not end the run
        return fail_row(
            {**row, "sample_id": unsampled_id(request), "media_digests": "{}"},
            stage=STAGE,
            error=error,
        )
    return {
        **row,
        "request": request_to_json(request),
        "sample_id": sample_id,
        "media_digests": json.dumps(digests, sort_keys=True),
        "status": READY,
        "error_class": "",
        "error_stage": "",
        "error_message": "",
        "error_traceback": "",
    }


def _measure_video(request: ClipRequest, uri: str, cache: MediaCache) -> tuple[str, ClipRequest]:
    """Digest a video and check that it is long enough, or let it decide the clip's length."""
    with cache.open_file(uri) as (digest, path):
        try:
            found = scan_video(path)
        except MediaError as error:
            told = str(error).replace(f"file:{path}", uri).replace(str(path), uri)
            raise MediaError(f"video {told}") from None
    num_frames = count_resampled(found.num_frames, source_fps=found.fps, fps=request.fps)
    same = f" ({found.num_frames} at its own {found.fps:g})" if found.fps != request.fps else ""
    length = f"video {uri} has {num_frames} frames at {request.fps:g} frames a second{same}"
    if request.num_frames > num_frames:
        raise RequestError(
            f"{length}, but num_frames is {request.num_frames}. Ask for {num_frames} frames or "
            "fewer, leave num_frames null to take them all, or give a longer video."
        )
    wanted = request.num_frames or num_frames
    if request.condition_image is not None and wanted < 2:
        raise RequestError(
            f"{length}, but a clip with a condition_image, which is frame 0 itself, needs 2 at "
            "least. Give a longer video."
        )
    return digest, dataclasses.replace(request, num_frames=wanted)
