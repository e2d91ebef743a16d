"""A table of real clips with captions: read it from any format, check every row, name what is bad.

Three columns are needed: ``clip_id``, ``video`` and ``caption``; they may have other names. Columns
that are not known here are kept as attributes of their clips.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from musev.errors import ConfigError, ManifestError, RequestError
from pipelines.checks import check_value, media_uri, shorten
from pipelines.manifest import read_manifest
from pipelines.rows import WHOLE_ROW, BadCell, Column

CLIP_COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column(name="clip_id", max_chars=200),
        Column(name="video", is_media=True),
        Column(name="caption", max_chars=20_000),
        Column(name="start_s", kind="number", low=0, high=1e6),
        Column(name="control", is_media=True),
        Column(name="sha256", max_chars=64),
        Column(name="licence", max_chars=200),
    )
}
NEEDED = ("clip_id", "video", "caption")
CHECK_STAGE = "table"
SHARD_STAGE = "make_shard"
"""Names of the stages that a row can fail in."""


@dataclass(frozen=True, kw_only=True)
class ClipRow:
    """One checked row; media are absolute fsspec URIs."""

    row: int
    """Place in the table, from 0; becomes the clip's key."""
    clip_id: str
    video: str
    caption: str
    start_s: float = 0.0
    """Where in the video the clip begins."""
    control: str | None = None
    """Video of the control drawings, in step with ``video``."""
    sha256: str | None = None
    """What the video's content must be."""
    licence: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClipFailure:
    """Why one row gives no clip."""

    row: int
    clip_id: str
    column: str
    """Empty if it is the row as a whole."""
    value: str
    error_class: str
    stage: str
    message: str
    """Says what to do."""

    def line(self) -> str:
        """Say it in one line; rows are counted from 1 for people."""
        name = f" ({self.clip_id!r})" if self.clip_id else ""
        place = f", column {self.column!r}" if self.column else ""
        value = f", value {self.value}" if self.value else ""
        return f"row {self.row + 1}{name}{place}{value}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class ClipTable:
    """Every row of a table, in order."""

    uri: str
    rows: Sequence[ClipRow]
    failures: Sequence[ClipFailure]
    num_rows: int


def parse_names(text: str) -> dict[str, str]:
    """Read ``video=contentUrl,caption=name``.

    Args:
        text: Pairs of our name and the table's; may be empty.

    Returns:
        Our names to the table's.

    Raises:
        ConfigError: If a pair is no pair, or names no column of ours.
    """
    names: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not equals or not theirs or ours not in CLIP_COLUMNS:
            raise ConfigError(
                f"columns needs OURS=THEIRS pairs with OURS one of {', '.join(CLIP_COLUMNS)}; "
                f"got {pair!r}"
            )
        names[ours] = theirs
    return names


def read_clip_table(uri: str, names: Mapping[str, str] | None = None) -> ClipTable:
    """Read and check a table of clips; media are not opened yet.

    Args:
        uri: Parquet (file or folder), CSV or JSON lines; path or URL.
        names: Our column names to the table's, where they differ.

    Returns:
        Good rows and bad ones.

    Raises:
        ManifestError: If nothing can be read, or a needed column is nowhere.
    """
    names = dict(names or {})
    theirs = {name: names.get(name, name) for name in CLIP_COLUMNS}
    columns = {theirs[name]: _renamed(column, theirs) for name, column in CLIP_COLUMNS.items()}
    if uri.lower().endswith((".yaml", ".yml")):
        raise ManifestError(f"{uri}: a table of clips is Parquet, CSV or JSON lines, not YAML.")
    raw = read_manifest(uri, columns=columns, check=_refuse_twins)
    _refuse_missing(raw.rows, theirs, uri)
    rows: list[ClipRow] = []
    failures: list[ClipFailure] = []
    seen: dict[str, int] = {}
    for number, values in enumerate(raw.rows):
        try:
            row = _check_row(number, values, theirs, raw.base_uri)
            _refuse_twin(row, seen, theirs)
        except _BadValueError as problem:
            column, value, message = problem.args
            name = values.get(theirs["clip_id"])
            failures.append(
                ClipFailure(
                    row=number,
                    clip_id=name if isinstance(name, str) else "",
                    column=column,
                    value="" if value is None else shorten(value),
                    error_class=RequestError.__name__,
                    stage=CHECK_STAGE,
                    message=message,
                )
            )
            continue
        seen[row.clip_id] = number
        rows.append(row)
    return ClipTable(uri=uri, rows=rows, failures=failures, num_rows=len(raw.rows))


class _BadValueError(Exception):
    """Column, value and message."""


def _renamed(column: Column, theirs: Mapping[str, str]) -> Column:
    return dataclasses.replace(column, name=theirs[column.name])


def _refuse_twins(names: Any, where: str) -> None:
    seen = list(names)
    twins = sorted({name for name in seen if seen.count(name) > 1})
    if twins:
        raise ManifestError(f"{where}: column {twins[0]!r} appears twice. Remove one of them.")


def _refuse_twin(row: ClipRow, seen: Mapping[str, int], theirs: Mapping[str, str]) -> None:
    if row.clip_id in seen:
        raise _BadValueError(
            theirs["clip_id"],
            row.clip_id,
            f"row {seen[row.clip_id] + 1} has the same name. Give every clip its own.",
        )


def _refuse_missing(rows: Sequence[Mapping[str, Any]], theirs: Mapping[str, str], uri: str) -> None:
    if not rows:
        raise ManifestError(f"table {uri} has no rows; there is nothing to make.")
    found = sorted({name for row in rows for name in row if name != WHOLE_ROW})
    for ours in NEEDED:
        if found and theirs[ours] not in found:
            near = difflib.get_close_matches(theirs[ours], found, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ManifestError(
                f"{uri}: no column {theirs[ours]!r} for {ours}.{hint} Columns there: "
                f"{', '.join(found)}. Name it with --set columns={ours}=NAME."
            )


def _check_row(
    number: int, values: Mapping[str, Any], theirs: Mapping[str, str], base_uri: str
) -> ClipRow:
    if isinstance(whole := values.get(WHOLE_ROW), BadCell):
        raise _BadValueError("", None, whole.reason)
    given: dict[str, Any] = {}
    for ours, column in CLIP_COLUMNS.items():
        value = values.get(theirs[ours])
        if value is None:
            if ours in NEEDED:
                raise _BadValueError(
                    theirs[ours], None, "is missing. Fill it in, or take the row out."
                )
            continue
        try:
            value = check_value(column, value)
            given[ours] = media_uri(value, base_uri) if column.is_media else value
        except RequestError as problem:
            shown = None if isinstance(value, BadCell) else value
            raise _BadValueError(theirs[ours], shown, str(problem)) from None
    return ClipRow(row=number, attributes=_attributes(values, set(theirs.values())), **given)


def _attributes(values: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Every other column that holds something, as plain JSON values; NaN is a gap, as in pandas."""
    extra: dict[str, Any] = {}
    for name, value in values.items():
        gap = value is None or isinstance(value, BadCell)
        gap = gap or (isinstance(value, float) and math.isnan(value))
        if name in known or gap:
            continue
        try:
            text = json.dumps({name: value}, default=str, ensure_ascii=False, allow_nan=False)
            text.encode()
        except ValueError:  # also of text that is half a sign
            raise _BadValueError(
                name,
                value,
                "JSON has no such value, so it cannot go along with the clip. Leave the cell "
                "empty, or put a number or text there.",
            ) from None
        extra |= json.loads(text)
    return extra
