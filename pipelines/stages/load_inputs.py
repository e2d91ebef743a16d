"""Stage: fetch a row's media once, check that they can be read, and name the sample (CPU)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from musev.config import ClipRequest
from musev.media import read_image
from pipelines.media_cache import MediaCache
from pipelines.outcomes import READY, Row, fail_row, unsampled_id
from pipelines.rows import request_from_json

STAGE = "load_inputs"
NameSample = Callable[[ClipRequest, Mapping[str, str]], str]


def load_inputs(row: Row, *, cache: MediaCache, name_sample: NameSample) -> Row:
    """Check a row's pictures before any GPU is held.

    Reads ``request``; adds ``sample_id``, ``media_digests`` (JSON) and ``status``: ``ready``, or
    ``failed`` with the ``error_*`` columns. The pictures themselves stay in the machine's cache.

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
        "sample_id": sample_id,
        "media_digests": json.dumps(digests, sort_keys=True),
        "status": READY,
        "error_class": "",
        "error_stage": "",
        "error_message": "",
        "error_traceback": "",
    }
