"""What became of a row: how a stage marks it failed, and the tiny row the graph hands back."""

from __future__ import annotations

import hashlib
import logging
import traceback
from typing import Any

from musev.config import ClipRequest, to_plain
from musev.errors import MusevError
from pipelines.rows import request_to_json

logger = logging.getLogger(__name__)

Row = dict[str, Any]
READY, COMMITTED, FAILED, QUARANTINED = "ready", "committed", "failed", "quarantined"

_UNEXPECTED = (
    " This is not a known kind of bad input. The traceback is in the failure record; after a "
    "change, run the same command with --retry-failed."
)


class WorkerLostError(MusevError):
    """A row took its worker down again and again."""


def worker_lost(times: int, what: str = "rendering this row") -> WorkerLostError:
    """Say why a row is quarantined."""
    return WorkerLostError(
        f"the worker died {times} times while {what} (out of memory, a crash of a "
        "library, or its machine). Look at the worker's log, try the row with a smaller size or "
        "fewer frames, then run again with --retry-failed."
    )


def fail_row(row: Row, *, stage: str, error: Exception, status: str = FAILED) -> Row:
    """Mark a row failed, so that it travels on with its reason and the others are not affected.

    Args:
        row: The row as the stage received it.
        stage: Where it failed.
        error: Why.
        status: ``failed`` or ``quarantined``.

    Returns:
        The row with ``status`` and the ``error_*`` columns of the results table.
    """
    expected = isinstance(error, MusevError)
    if not expected:
        logger.error("stage %s, row %s: unexpected error", stage, row.get("row"), exc_info=error)
    return {
        **row,
        "status": status,
        "error_class": type(error).__name__,
        "error_stage": stage,
        "error_message": f"{error}{'' if expected else _UNEXPECTED}",
        "error_traceback": "" if expected else "".join(traceback.format_exception(error)),
    }


def unsampled_id(request: ClipRequest) -> str:
    """Name the failure of a request whose media could not be read.

    Without media digests there is no sample id; the name must still be the same on every run, so
    that a repeat replaces the record instead of adding one.

    Args:
        request: The resolved request.

    Returns:
        64 hex digits.
    """
    return hashlib.sha256(f"unreadable media:{request_to_json(request)}".encode()).hexdigest()


def failure_record(row: Row, request: ClipRequest) -> dict[str, Any]:
    """Build the record that ``failures/`` keeps of a failed or quarantined row.

    Args:
        row: Marked by :func:`fail_row`.
        request: What was asked for.

    Returns:
        Values under the results table's column names, the request, a traceback if there is one, and
        the conditions that were computed for it.
    """
    conditions = {"conditions": row["conditions"]} if row.get("conditions") else {}
    return {
        "request_id": request.request_id,
        "request": to_plain(request),
        "status": row["status"],
        "error_class": row["error_class"],
        "error_stage": row["error_stage"],
        "error_message": row["error_message"],
        "error_traceback": row.get("error_traceback") or None,
        "attempts": row.get("attempts", 0),
        **conditions,
    }
