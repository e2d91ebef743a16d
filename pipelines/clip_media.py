"""A row's media opened on the machine where they are needed."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from musev.config import ClipRequest
from musev.lora_choice import LoraFile
from musev.media import read_image
from pipelines.engines import Media
from pipelines.media_cache import MediaCache


@contextmanager
def open_media(
    cache: MediaCache, request: ClipRequest, digests_json: str, maps_json: str = ""
) -> Iterator[Media]:
    """Open what a row names, as it was when the row was checked.

    Args:
        cache: Fetches what this machine does not have yet.
        request: Names the media.
        digests_json: Manifest column to digest of the content, as a row carries them.
        maps_json: Where control maps lie that were made for the row; empty without.

    Yields:
        Decoded pictures, the path of the video, and the control maps, whose pieces are fetched when
        they are asked for. Files stay for the ``with`` block.

    Raises:
        MediaError: If something is gone, has changed, or cannot be decoded.
    """
    digests, uris = json.loads(digests_json), request.media
    video = uris.pop("video", None)
    uris.pop("keypoints", None)  # their maps are drawn
    pictures: dict[str, list[np.ndarray]] = {}
    for name, uri in uris.items():
        picture_YXC = read_image(cache.read(uri, digests[name]), name=f"{name} {uri}")
        pictures.setdefault(name.partition(".")[0], []).append(picture_YXC)
    media: Media = {
        column: several if len(several) > 1 else several[0] for column, several in pictures.items()
    }
    assert maps_json or not request.needs_maps, "control maps that were not made"
    with ExitStack() as stack:
        needs_video = request.start_from_video or not request.maps_made_of
        if video is not None and needs_video:
            media["video"] = stack.enter_context(cache.open_file(video, digests["video"]))[1]
        if request.loras:
            media["loras"] = tuple(
                LoraFile(
                    lora, stack.enter_context(cache.open_file(uri, digests[name]))[1], digests[name]
                )
                for lora, (name, uri) in zip(request.loras, request.files.items(), strict=True)
            )
        if maps_json:
            media["maps"] = _open_maps(cache, json.loads(maps_json), media.get("video"), stack)
        yield media


def _open_maps(
    cache: MediaCache, places: dict[str, Any], video: Path | None, stack: ExitStack
) -> Any:
    from musev.control.clip_control import ControlMaps  # with torch, which only workers have

    @functools.cache
    def open_piece(name: str, number: int) -> Path:
        piece = places[name]["pieces"][number]
        return stack.enter_context(cache.open_file(piece["uri"], piece["digest"]))[1]

    fronts = {name: row["front"] for name, row in places.items() if row["front"] is not None}
    has_pieces = any(row["pieces"] for row in places.values())
    return ControlMaps(
        open_piece=open_piece if has_pieces else None,
        piece_frames=max(row["piece_frames"] for row in places.values()),
        video=video,
        front={
            name: read_image(cache.read(place["uri"], place["digest"]), name=place["uri"])
            for name, place in fronts.items()
        },
    )
