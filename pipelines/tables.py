"""Manifest rows from and to Parquet, CSV and JSON lines; one bad spot costs as little as possible.

Readers return plain dicts. A value that cannot be read becomes a :class:`BadCell` in its place; a
row that cannot be read at all is ``{WHOLE_ROW: BadCell(...)}``. Only a file that gives no rows is a
:class:`ManifestError`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from musev.errors import ManifestError, RequestError
from pipelines.checks import check_names, check_type, parse_cell
from pipelines.rows import MANIFEST_COLUMNS, MANIFEST_SCHEMA, WHOLE_ROW, BadCell, Column

RawRow = dict[str, Any]
CheckNames = Callable[[Iterable[str], str], None]
"""Column names and where they were found; refuses those that the table must not have."""

# Whatever pyarrow raises for damaged data.
_DAMAGE = (pa.ArrowException, OSError, ValueError)
_ROWS_PER_GROUP = 1000  # damage to a column chunk costs at most this many rows


class UnreadableFileError(ManifestError):
    """One file gives no rows at all; other files of the same manifest may."""


def read_parquet(handle: BinaryIO, where: str, *, check: CheckNames = check_names) -> list[RawRow]:
    """Read a Parquet file; a damaged column chunk costs only the rows of its row group.

    Args:
        handle: The open file.
        where: Its name, for messages.
        check: Decides on the column names.

    Returns:
        One dict a row, every column of the file present.

    Raises:
        UnreadableFileError: If the footer is unreadable. An unknown column is a ManifestError.
    """
    try:
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        names = file.schema_arrow.names
        _check_counts(file.metadata)
    except _DAMAGE as problem:
        raise UnreadableFileError(
            f"{where}: not a readable Parquet file ({_first_line(problem)}). Write it again."
        ) from None
    check(names, where)
    rows: list[RawRow] = []
    for group in range(file.num_row_groups):
        columns = _read_group(file, group, names, where)
        rows.extend(dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
    return rows


def _check_counts(footer: pq.FileMetaData) -> None:
    counts = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != footer.num_rows:
        raise ValueError("its row counts contradict each other")


def _read_group(
    file: pq.ParquetFile, group: int, names: Sequence[str], where: str
) -> list[list[Any]]:
    num_rows = file.metadata.row_group(group).num_rows
    try:
        table = file.read_row_group(group)
        columns = [_values(table.column(name), name, where) for name in names]
        if all(len(values) == num_rows for values in columns):
            return columns
    except _DAMAGE:
        pass  # which column it was shows below, one at a time
    return [_read_chunk(file, group, name, where) for name in names]


def _read_chunk(file: pq.ParquetFile, group: int, name: str, where: str) -> list[Any]:
    num_rows = file.metadata.row_group(group).num_rows
    try:
        values = _values(file.read_row_group(group, columns=[name]).column(0), name, where)
        if len(values) == num_rows:
            return values
        detail = f"{len(values)} values for {num_rows} rows"
    except _DAMAGE as problem:
        detail = _first_line(problem)
    reason = (
        f"{where}: column {name!r} is unreadable in row group {group} ({detail}). "
        "Write the file again."
    )
    return [BadCell(reason)] * num_rows


def _values(column: pa.ChunkedArray, name: str, where: str) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [item if item is None else _decode(item, name, where) for item in raw]


def _decode(raw: bytes, name: str, where: str) -> str | BadCell:
    try:
        return raw.decode()
    except UnicodeDecodeError as problem:
        place = f"{problem.reason} at byte {problem.start}"
        return BadCell(f"{where}: not UTF-8 text in column {name!r} ({place}). Save it as UTF-8.")


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


def read_csv(
    data: bytes,
    where: str,
    *,
    columns: Mapping[str, Column] = MANIFEST_COLUMNS,
    check: CheckNames = check_names,
) -> list[RawRow]:
    """Read a CSV file with a header line; an empty cell is null, a quoted empty one is empty text.

    Args:
        data: The file's bytes, UTF-8.
        where: Its name, for messages.
        columns: Columns whose type is known; that of any other is guessed from its cells.
        check: Decides on the column names.

    Returns:
        One dict a row.

    Raises:
        ManifestError: If there is no header, or a column is unknown.
    """
    try:
        data.decode()
    except UnicodeDecodeError:
        # pyarrow drops a misshaped row without a word if it is not UTF-8 as well.
        data = data.decode(errors="replace").encode()
    misshaped: list[tuple[int, str]] = []

    def keep_place(row: pa_csv.InvalidRow) -> str:
        misshaped.append(
            (row.number, f"has {row.actual_columns} cells, the header has {row.expected_columns}")
        )
        return "skip"

    try:
        table = pa_csv.read_csv(
            io.BytesIO(data),
            read_options=pa_csv.ReadOptions(
                use_threads=False, block_size=min(len(data) + 1, 2**31 - 1)
            ),
            parse_options=pa_csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=keep_place
            ),
            convert_options=pa_csv.ConvertOptions(
                check_utf8=False,
                column_types={name: pa.binary() for name in columns},
                strings_can_be_null=True,
                null_values=[""],
                quoted_strings_can_be_null=False,
            ),
        )
        names = table.column_names
    except _DAMAGE as problem:
        raise ManifestError(f"{where}: not a readable CSV file ({_first_line(problem)}).") from None
    check(names, where)
    cells = [
        [_csv_cell(columns[name], item, where) for item in table.column(name).to_pylist()]
        if name in columns
        else _values(table.column(name), name, where)
        for name in names
    ]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*cells, strict=True)]
    for number, reason in sorted(misshaped):
        reason = f"{where}: row {number - 1} {reason}. Quote cells that hold commas."
        rows.insert(number - 2, {WHOLE_ROW: BadCell(reason)})
    return rows


def _csv_cell(column: Column, raw: bytes | None, where: str) -> Any:
    if raw is None:
        return None
    text = raw.decode()
    if "\ufffd" in text:
        return BadCell(f"{where}: not UTF-8 text in column {column.name!r}. Save it as UTF-8.")
    return parse_cell(column, text)


def read_jsonl(
    data: bytes,
    where: str,
    *,
    columns: Mapping[str, Column] = MANIFEST_COLUMNS,
    check: CheckNames = check_names,
) -> list[RawRow]:
    """Read JSON lines: one object a line, blank lines skipped.

    Args:
        data: The file's bytes, UTF-8.
        where: Its name, for messages.
        columns: Columns that need no check.
        check: Decides on the keys of a line with others.

    Returns:
        One dict a row. A key that is no manifest column is a ManifestError.
    """
    rows: list[RawRow] = []
    known = columns.keys()
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{where}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            row = {WHOLE_ROW: BadCell(f"{place} is not JSON ({_first_line(problem)}).")}
        if not isinstance(row, dict):
            row = {WHOLE_ROW: BadCell(f"{place} is not an object but {type(row).__name__}.")}
        elif not row.keys() <= known and WHOLE_ROW not in row:
            check(row, place)
        rows.append(row)
    return rows


def write_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows as Parquet with the manifest's types and checksums on every page."""
    schema = pa.schema([MANIFEST_SCHEMA.field(name) for name in _used_names(rows)])
    columns = [
        pa.array(
            [_plain(field.name, row.get(field.name), i) for i, row in enumerate(rows, 1)],
            field.type,
        )
        for field in schema
    ]
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema),
        sink,
        row_group_size=_ROWS_PER_GROUP,
        write_page_checksum=True,
    )
    return sink.getvalue()


def write_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows as CSV: text always quoted, null as nothing, lists as JSON arrays."""
    names = _used_names(rows)
    lines = [",".join(names)]
    for number, row in enumerate(rows, start=1):
        cells = [_csv_text(_plain(name, row.get(name), number)) for name in names]
        lines.append(",".join(cells))
    return ("\n".join(lines) + "\n").encode()


def _csv_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return '"' + text.replace('"', '""') + '"'


def write_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows as JSON lines; every column that any row has appears in every line."""
    names = _used_names(rows)
    lines = [
        json.dumps({name: _plain(name, row.get(name), i) for name in names}, ensure_ascii=False)
        for i, row in enumerate(rows, start=1)
    ]
    return "".join(line + "\n" for line in lines).encode()


def _used_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    used: set[str] = {"request_id"}.union(*rows)
    check_names(used, "rows to write")
    return [name for name in MANIFEST_COLUMNS if name in used]


def _plain(name: str, value: Any, number: int) -> Any:
    if value is None:
        return None
    try:
        checked = check_type(MANIFEST_COLUMNS[name], value)
    except RequestError as problem:
        raise ManifestError(f"row {number}, column {name!r}: {problem}") from None
    if MANIFEST_COLUMNS[name].kind == "pictures" and isinstance(checked, list):
        return json.dumps(checked, ensure_ascii=False)
    return checked


READERS: dict[str, Callable[..., list[RawRow]]] = {"csv": read_csv, "jsonl": read_jsonl}
WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]]], bytes]] = {
    "parquet": write_parquet,
    "csv": write_csv,
    "jsonl": write_jsonl,
}
