"""A row's media opened on the machine where they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from musev.config import ClipRequest
from musev.media import read_image
from pipelines.engines import Media
from pipelines.media_cache import MediaCache


@contextmanager
def open_media(cache: MediaCache, request: ClipRequest, digests_json: str) -> Iterator[Media]:
    """Open what a row names, as it was when the row was checked.

    Args:
        cache: Fetches what this machine does not have yet.
        request: Names the media.
        digests_json: Manifest column to digest of the content, as a row carries them.

    Yields:
        Decoded pictures, and the path of the video; the file stays for the ``with`` block.

    Raises:
        MediaError: If something is gone, has changed, or cannot be decoded.
    """
    digests = json.loads(digests_json)
    uris = request.media
    video = uris.pop("video", None)
    media: Media = {
        column: read_image(cache.read(uri, digests[column]), name=f"{column} {uri}")
        for column, uri in uris.items()
    }
    if video is None:
        yield media
        return
    with cache.open_file(video, digests["video"]) as (_, path):
        yield media | {"video": path}
