"""Stage: put a row's end on storage, be it the video with its commit record or the failure."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

from musev.config import ClipRequest, to_plain
from musev.errors import StorageError
from musev.licences import licence_of
from pipelines.control_units import digests_of
from pipelines.ledger import Ledger
from pipelines.outcomes import COMMITTED, READY, Row, failure_record
from pipelines.report import versions
from pipelines.rows import request_from_json

STAGE = "commit"


class CommitClip:
    """Commit rendered rows, record failed ones, and cut the row down to what the driver needs.

    Reads what the render stage adds; leaves ``row``, ``sample_id``, ``request_id``, ``status``, the
    ``error_*`` columns, ``attempts``, ``num_frames`` and ``seconds``. Committing a sample that
    somebody has committed is a success. Storage that does not answer is nobody's row's fault: the
    error is raised, the row vanishes from this dataset and is started again.

    Args:
        ledger: Where to.
        model_digests: Part name to digest of its weights, for the record.
        licences: Part name to the licence of its weights, for the record.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        model_digests: Mapping[str, str],
        licences: Mapping[str, str] | None = None,
    ) -> None:
        self._ledger = ledger
        self._model_digests = dict(model_digests)
        self._licences = dict(licences or {})
        self._versions = versions()

    def __call__(self, row: Row) -> Row:
        """Put one row's end on storage."""
        request = request_from_json(row["request"])
        try:
            if row["status"] == READY:
                started = time.monotonic()
                self._commit(row, request)
                row = {**row, "status": COMMITTED}
                row["stage_seconds"]["commit"] = time.monotonic() - started
            else:
                self._ledger.fail(row["sample_id"], failure_record(row, request))
        except StorageError:
            if "attempt_id" in row:
                self._ledger.release_attempt(row["sample_id"], row["attempt_id"])
            raise
        finally:
            if path := row.get("video_path"):
                Path(path).unlink(missing_ok=True)
        return {
            "row": row["row"],
            "sample_id": row["sample_id"],
            "request_id": request.request_id,
            "status": row["status"],
            "error_class": row["error_class"],
            "error_stage": row["error_stage"],
            "error_message": row["error_message"],
            "attempts": row.get("attempts", 0),
            "num_frames": request.num_frames,
            "seconds": round(sum(row.get("stage_seconds", {}).values()), 3),
        }

    def _commit(self, row: Row, request: ClipRequest) -> None:
        seconds = row["stage_seconds"]
        record = {
            "request_id": request.request_id,
            "request": to_plain(request),
            **dataclasses.asdict(row["measured"]),
            "media_digests": json.loads(row["media_digests"]),
            "model_digests": digests_of(self._model_digests, request),
            "licences": digests_of(self._licences, request)
            | {name: licence_of(uri) for name, uri in request.files.items()},
            "attempts": row["attempts"],
            "stage_seconds": seconds,
            "gpu_seconds": sum(seconds.values()) if row["device"] == "cuda" else 0.0,
            "versions": self._versions,
        }
        if "tasks" in row:  # of a long clip: what was done, saved by a checkpoint, lost
            record["tasks"] = row["tasks"]
        if row.get("control_maps"):
            record["control_maps"] = json.loads(row["control_maps"])
        if row.get("conditions"):
            record["conditions"] = row["conditions"]
        self._ledger.commit(row["sample_id"], row["attempt_id"], row["video_path"], record)
