"""Scores of committed videos, kept beside their commit records: the results table's ``metrics``.

    metrics/<id>.json        scores, reasons and curves of one sample
    metrics/<id>.frames.jpg  some of its frames
    metrics/<id>.seams.jpg   its worst seams, where it has windows

Commit records never change, and the results table is built anew by every run. So scores have files
of their own, one a sample, which :meth:`Ledger.write_results` reads: no later run loses them, two
machines that judge the same sample write the same file, and judging it again replaces it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.rows import RESULTS_SCHEMA
from pipelines.storage import Store

METRICS = "metrics"
PICTURES = ("frames", "seams")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the judges said of one video."""

    sha256: str
    """Of the video that was judged."""
    version: int
    """Of the judges: older scores are made again."""
    scores: Mapping[str, float]
    """Those that a judge could say."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why the others could not; under ``video`` why nothing could be judged at all."""
    curves: Mapping[str, list[float | None]] = field(default_factory=dict)
    """Over the frames; None where there is no value."""
    kind: str = ""
    """Kind of held-out request, or empty."""

    def to_json(self) -> bytes:
        """Write it; numbers that are not finite become text, which JSON has none for."""
        plain = {**self.__dict__, "scores": {n: _finite(v) for n, v in self.scores.items()}}
        return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()


def scored_from_json(data: bytes) -> Scored | None:
    """Read what :meth:`Scored.to_json` wrote.

    Args:
        data: The JSON.

    Returns:
        The scores; None if it is damaged or of another format: it is then judged again.
    """
    try:
        plain = json.loads(data)
        plain["scores"] = {name: float(value) for name, value in plain["scores"].items()}
        return Scored(**plain)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def read_scores(store: Store) -> dict[str, Scored]:
    """Read all scores below an output URL, by sample id; damaged ones are left out."""
    paths = [path for path in store.list(METRICS) if path.endswith(".json")]
    found = {
        Path(path).stem: scored_from_json(data) for path, data in store.read_many(paths).items()
    }
    return {name: scored for name, scored in found.items() if scored is not None}


def write_scores(
    store: Store, sample_id: str, scored: Scored, pictures: Mapping[str, bytes]
) -> None:
    """Put the scores of one sample on storage, pictures first.

    Args:
        store: The output.
        sample_id: Whose.
        scored: What the judges said.
        pictures: JPEG files by name of :data:`PICTURES`.
    """
    for name, content in pictures.items():
        store.put(picture_path(sample_id, name), content)
    store.put(f"{METRICS}/{sample_id}.json", scored.to_json())


def picture_path(sample_id: str, name: str) -> str:
    """Path of a picture of a sample below the output URL."""
    return f"{METRICS}/{sample_id}.{name}.jpg"


def with_metrics(table: pa.Table, scores: Mapping[str, Scored]) -> pa.Table:
    """Fill the column ``metrics`` of a results table.

    Args:
        table: As :func:`pipelines.rows.results_table` builds it.
        scores: By sample id. Scores of another video than the row's (by digest) do not count.

    Returns:
        The table; null for rows that are not judged.
    """
    metrics = []
    for name, digest in zip(
        table["sample_id"].to_pylist(), table["sha256"].to_pylist(), strict=True
    ):
        scored = scores.get(name)
        fits = scored is not None and scored.sha256 == digest
        metrics.append(sorted(scored.scores.items()) if scored and fits else None)
    place = table.schema.get_field_index("metrics")
    kind = RESULTS_SCHEMA.field("metrics")
    return table.set_column(place, kind, pa.array(metrics, type=kind.type))


def update_results(store: Store, path: str) -> pa.Table | None:
    """Put the scores into a results table that lies on storage.

    Args:
        store: The output.
        path: Of the table.

    Returns:
        The table; None if there is none, because no run has come to its end here.
    """
    data = store.read_if_present(path)
    if data is None:
        return None
    table = with_metrics(pq.read_table(io.BytesIO(data)), read_scores(store))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.put(path, sink.getvalue())
    return table


def read_statuses(store: Store, path: str) -> dict[str, str]:
    """Sample id to status of every row of a results table on storage; empty if there is none."""
    data = store.read_if_present(path)
    if data is None:
        return {}
    table = pq.read_table(io.BytesIO(data), columns=["sample_id", "status"])
    return dict(zip(table["sample_id"].to_pylist(), table["status"].to_pylist(), strict=True))


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
