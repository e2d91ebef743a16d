"""Stage: fetch a row's media once, check and measure them, and name the sample (CPU)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from musev.config import ClipRequest
from musev.control.keypoints import time_people
from musev.errors import MediaError, RequestError
from musev.media import FrameTimes, pick_frames, read_image, time_frames
from musev.weights import safetensors_keys
from pipelines.media_cache import MediaCache
from pipelines.outcomes import READY, Row, fail_row, unsampled_id
from pipelines.rows import request_from_json, request_to_json

STAGE = "load_inputs"
NameSample = Callable[[ClipRequest, Mapping[str, str]], str]


def load_inputs(row: Row, *, cache: MediaCache, name_sample: NameSample) -> Row:
    """Check a row's pictures and video before any GPU is held.

    Reads ``request`` and completes it: a length that the video decides is known from here on. Adds
    ``sample_id``, ``media_digests`` (JSON), ``video_frames`` (how many a clip without end could
    read of its video or keypoints) and ``status``: ``ready``, or ``failed`` with the ``error_*``
    columns. The media themselves stay in the machine's cache.

    Args:
        row: One row.
        cache: Fetches media.
        name_sample: Request and digests of its media to sample id.

    Returns:
        The row with the columns named above.
    """
    request = request_from_json(row["request"])
    try:
        digests, num_picked = {}, 0
        for column, uri in request.media.items():
            if column in ("video", "keypoints"):
                digests[column], num_picked, request = _measure(column, request, uri, cache)
            else:
                digests[column], content = cache.fetch(uri)
                read_image(content, name=f"{column} {uri}")
        for name, uri in request.files.items():
            with cache.open_file(uri) as (digests[name], path):
                _check_lora(path, uri)
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
        "video_frames": num_picked,
        "media_digests": json.dumps(digests, sort_keys=True),
        "status": READY,
        "error_class": "",
        "error_stage": "",
        "error_message": "",
        "error_traceback": "",
    }


def _check_lora(path: Path, uri: str) -> None:
    """Look at a LoRA file's keys; whether they fit the network is seen where it is merged."""
    keys = safetensors_keys(path)
    if keys is not None and not any("lora" in key for key in keys):
        raise RequestError(
            f"loras: {uri} holds no LoRA; its keys are {', '.join(sorted(keys)[:3])} and so on. "
            "Give a LoRA file of Stable Diffusion 1.5."
        )


def _measure(
    column: str, request: ClipRequest, uri: str, cache: MediaCache
) -> tuple[str, int, ClipRequest]:
    """Digest a video or keypoints and check its length, or let it decide the clip's.

    Gives the digest, how many frames could be read, and the request with its length.
    """
    with cache.open_file(uri) as (digest, path):
        try:
            if column == "keypoints":
                times = time_people(path, fps=request.fps)
            else:
                times = time_frames(path, may_be_cut=request.video_may_be_cut)
        except (MediaError, RequestError) as error:
            told = str(error).replace(f"file:{path}", uri).replace(str(path), uri)
            raise type(error)(f"{column} {told}") from None
    num_picked = len(pick_frames(times, fps=request.fps, sample_rate=request.sample_rate))
    own = int(request.condition_has_own_map)
    available = num_picked + own
    length = f"{column} {uri} has {_describe(times, num_picked, request)}"
    if own:
        length += f", so with the condition image in front a clip has {available} at most"
    if request.num_frames > available:
        raise RequestError(
            f"{length}, but num_frames is {request.num_frames}. Ask for {available} frames or "
            "fewer, leave num_frames null to take them all, or give a longer video."
        )
    wanted = request.num_frames or available
    if request.condition_image is not None and wanted < 2:
        raise RequestError(
            f"{length}, but a clip with a condition image, which is frame 0 itself, needs 2 at "
            "least. Give a longer video."
        )
    return digest, num_picked, dataclasses.replace(request, num_frames=wanted)


def _describe(times: FrameTimes, num_picked: int, request: ClipRequest) -> str:
    cut = " before it is damaged" if times.damaged else ""
    if request.sample_rate is not None:
        every = f"every {request.sample_rate}. of its {times.num_frames}"
        return f"{num_picked} frames{cut}, taking {every}"
    same = f" ({times.num_frames} at its own {times.fps:g})" if times.fps != request.fps else ""
    return f"{num_picked} frames{cut} at {request.fps:g} frames a second{same}"
