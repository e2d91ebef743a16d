"""The list of requests as a file: read it from any format, write it to any other.

A manifest is a table with the columns of ``pipelines.rows.MANIFEST_COLUMNS``. Reading gives raw
rows; :func:`resolve_rows` (``pipelines.resolve``) makes requests of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from musev.errors import ManifestError, RequestError
from pipelines.checks import check_names, check_type, media_uris
from pipelines.musev_tasks import read_tasks
from pipelines.resolve import resolve_rows, seed_for
from pipelines.rows import MANIFEST_COLUMNS, WHOLE_ROW, BadCell, Column
from pipelines.tables import READERS, WRITERS, CheckNames, UnreadableFileError, read_parquet

__all__ = [
    "RawManifest",
    "folder_of",
    "read_manifest",
    "rebase_media",
    "resolve_rows",
    "seed_for",
    "split_writable",
    "write_manifest",
]

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
}
_STORAGE_TROUBLE = (OSError, ValueError, ImportError)


@dataclass(frozen=True, kw_only=True)
class RawManifest:
    """Rows as they were read, not yet checked."""

    rows: list[dict[str, Any]]
    base_uri: str
    """Folder that relative media paths start from."""
    format: str


def read_manifest(
    uri: str,
    *,
    columns: Mapping[str, Column] = MANIFEST_COLUMNS,
    check: CheckNames = check_names,
    storage_options: Mapping[str, Any] | None = None,
) -> RawManifest:
    """Read a manifest from Parquet (a file or a folder of files), CSV, JSON lines or task YAML.

    Args:
        uri: Any fsspec URI or local path; the format follows from the suffix, a folder is Parquet.
        columns: Columns whose type is known; a table of another kind names its own.
        check: Decides on the column names.
        storage_options: For the fsspec driver.

    Returns:
        The raw rows and the folder they lie in.

    Raises:
        ManifestError: If nothing can be read, or a column is unknown.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri, **(storage_options or {}))
        fs.invalidate_cache()  # files written since this process last looked count too
        if fs.isdir(path):
            return RawManifest(
                rows=_read_folder(fs, path, check),
                base_uri=fs.unstrip_protocol(path),
                format="parquet",
            )
        if not fs.exists(path):
            raise ManifestError(f"no manifest at {uri}. Check the path and the spelling.")
        kind = _format_of(uri)
        base_uri = fs.unstrip_protocol(fs._parent(path))
        if kind == "parquet":
            with fs.open(path, "rb") as handle:
                rows = read_parquet(handle, uri, check=check)
            return RawManifest(rows=rows, base_uri=base_uri, format=kind)
        data = fs.cat_file(path)
    except _STORAGE_TROUBLE as problem:
        raise ManifestError(f"cannot read manifest {uri}: {problem}") from None
    if not data.strip():
        raise ManifestError(f"manifest {uri} is empty ({len(data)} bytes).")
    if kind == "yaml":
        try:
            return RawManifest(rows=read_tasks(data.decode(), uri), base_uri=base_uri, format=kind)
        except UnicodeDecodeError as problem:
            raise ManifestError(f"{uri}: not UTF-8 text ({problem.reason}).") from None
    rows = READERS[kind](data, uri, columns=columns, check=check)
    return RawManifest(rows=rows, base_uri=base_uri, format=kind)


def _read_folder(
    fs: fsspec.AbstractFileSystem, path: str, check: CheckNames
) -> list[dict[str, Any]]:
    files = sorted(
        name
        for name in fs.find(path)
        if name.endswith((".parquet", ".pq")) and not _hidden(name, path)
    )
    if not files:
        raise ManifestError(f"no Parquet files in {path}. Name a file, or a folder of *.parquet.")
    rows: list[dict[str, Any]] = []
    unreadable = 0
    for name in files:
        with fs.open(name, "rb") as handle:
            try:
                rows.extend(read_parquet(handle, name, check=check))
            except UnreadableFileError as problem:
                unreadable += 1
                rows.append({WHOLE_ROW: BadCell(str(problem))})
    if unreadable == len(files):
        raise ManifestError(f"none of the {len(files)} Parquet files in {path} is readable.")
    return rows


def _hidden(name: str, folder: str) -> bool:
    parts = name[len(folder) :].strip("/").split("/")
    return any(part.startswith((".", "_")) for part in parts)


def _format_of(uri: str) -> str:
    suffix = "." + uri.rpartition("/")[2].rpartition(".")[2].lower()
    if suffix not in FORMATS:
        raise ManifestError(f"manifest {uri}: unknown format. Use one of {', '.join(FORMATS)}.")
    return FORMATS[suffix]


def write_manifest(
    rows: Sequence[Mapping[str, Any]],
    uri: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write raw rows as Parquet, CSV or JSON lines; whole, or not at all.

    Args:
        rows: Rows with manifest columns only.
        uri: Target; the format follows from its suffix.
        storage_options: For the fsspec driver.

    Raises:
        ManifestError: If a value does not fit its column, or the target cannot be written.
    """
    kind = _format_of(uri)
    if kind not in WRITERS:
        raise ManifestError(f"cannot write {kind} manifests. Use .parquet, .csv or .jsonl.")
    data = WRITERS[kind](rows)
    try:
        fs, path = fsspec.core.url_to_fs(uri, **(storage_options or {}))
        fs.makedirs(fs._parent(path), exist_ok=True)
        with fs.transaction, fs.open(path, "wb") as handle:
            handle.write(data)
    except _STORAGE_TROUBLE as problem:
        raise ManifestError(f"cannot write manifest {uri}: {problem}") from None


def split_writable(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Part rows that :func:`write_manifest` takes from those that hold a value it cannot write.

    Args:
        rows: Raw rows.

    Returns:
        ``(writable, problems)``; a problem names row, column and reason.
    """
    writable, problems = [], []
    for number, row in enumerate(rows, start=1):
        problem = _first_problem(row)
        if problem is None:
            writable.append(row)
        else:
            problems.append(f"row {number}{problem}")
    return writable, problems


def _first_problem(row: Mapping[str, Any]) -> str | None:
    for name, value in row.items():
        if value is None:
            continue
        place = f", column {name!r}" if name != WHOLE_ROW else ""
        if isinstance(value, BadCell):
            return f"{place}: {value.reason}"
        if name not in MANIFEST_COLUMNS:
            return f"{place}: is no manifest column."
        try:
            check_type(MANIFEST_COLUMNS[name], value)
        except RequestError as problem:
            return f"{place}: {problem}"
    return None


def folder_of(uri: str) -> str:
    """The folder that relative media paths of a manifest at ``uri`` start from, as a URI."""
    fs, path = fsspec.core.url_to_fs(uri)
    return fs.unstrip_protocol(path if fs.isdir(path) else fs._parent(path))


def rebase_media(row: Mapping[str, Any], old_base: str, new_base: str) -> dict[str, Any]:
    """Keep a row's relative media paths pointing at the same files from another folder."""
    moved = dict(row)
    if old_base == new_base:
        return moved
    for name, value in row.items():
        column = MANIFEST_COLUMNS.get(name)
        if column is not None and column.is_media and value is not None:
            try:
                moved[name] = media_uris(column, value, old_base)
            except RequestError:
                continue  # stays as written; checking the new manifest refuses it the same way
    return moved
