from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musev.errors import ManifestError
from pipelines.rows import MANIFEST_COLUMNS, MANIFEST_SCHEMA, WHOLE_ROW, BadCell
from pipelines.tables import (
    read_csv,
    read_jsonl,
    read_parquet,
    write_csv,
    write_jsonl,
    write_parquet,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.floats(allow_nan=False)
BY_KIND: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXT,
    "json": TEXT,
    "integer": st.integers(-(2**63), 2**63 - 1),
    "number": NUMBER,
    "flag": st.booleans(),
    "texts": st.lists(TEXT, max_size=3),
    "numbers": st.lists(NUMBER, max_size=3),
    "integers": st.lists(st.integers(-(2**40), 2**40), max_size=3),
    "pictures": st.sampled_from(["a.png", "b c.png", '["a.png", "b.png"]']),
}
ROW = st.fixed_dictionaries(
    {name: st.none() | BY_KIND[column.kind] for name, column in MANIFEST_COLUMNS.items()}
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=5))
def test_rows_go_round_every_format_unchanged(rows: list[dict[str, Any]]) -> None:
    first = read_parquet(io.BytesIO(write_parquet(rows)), "a.parquet")
    second = read_csv(write_csv(first), "a.csv")
    third = read_jsonl(write_jsonl(second), "a.jsonl")
    last = read_parquet(io.BytesIO(write_parquet(third)), "b.parquet")
    assert first == rows
    assert second == rows
    assert third == rows
    assert last == rows


def test_columns_nobody_uses_are_not_written() -> None:
    rows = [{"request_id": "a", "prompt": "p"}, {"request_id": "b", "fps": 8.0}]
    table = pq.read_table(io.BytesIO(write_parquet(rows)))
    assert table.column_names == ["request_id", "prompt", "fps"]
    assert table.schema.field("fps").type == MANIFEST_SCHEMA.field("fps").type
    assert write_csv(rows) == b'request_id,prompt,fps\n"a","p",\n"b",,8.0\n'


@pytest.mark.parametrize("write", [write_parquet, write_csv, write_jsonl])
@pytest.mark.parametrize(
    ("bad", "phrase"),
    [
        ({"fps": "fast"}, "row 2, column 'fps'"),
        ({"seed": 2**70}, "row 2, column 'seed'"),
        ({"prompt": "\ud800"}, "row 2, column 'prompt'"),
        ({"promt": "x"}, "Did you mean 'prompt'"),
        ({"prompt": BadCell("was damaged")}, "was damaged"),
    ],
)
def test_a_value_that_does_not_fit_is_named(write, bad: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ManifestError) as caught:
        write([{"request_id": "a"}, {"request_id": "b", **bad}])
    assert phrase in str(caught.value)


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def damage(data: bytes, column: str, group: int) -> bytes:
    """Overwrite the data of one column chunk."""
    meta = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(group)
    chunk = next(
        meta.column(i)
        for i in range(meta.num_columns)
        if meta.column(i).path_in_schema.split(".")[0] == column
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    size = chunk.total_compressed_size
    return data[:start] + b"\xff" * size + data[start + size :]


@pytest.mark.parametrize("column", ["prompt", "control"])
def test_a_damaged_column_chunk_costs_only_its_rows(column: str) -> None:
    data = parquet(
        {
            "request_id": [f"r{i}" for i in range(6)],
            "prompt": [f"p{i}" for i in range(6)],
            "control": pa.array([["x"]] * 6),
        },
        row_group_size=2,
    )
    rows = read_parquet(io.BytesIO(damage(data, column, group=1)), "m.parquet")
    assert [row["request_id"] for row in rows] == [f"r{i}" for i in range(6)]
    bad = [i for i, row in enumerate(rows) if isinstance(row[column], BadCell)]
    assert bad == [2, 3]
    assert f"m.parquet: column '{column}' is unreadable in row group 1" in rows[2][column].reason
    assert rows[4]["prompt"] == "p4"


def test_a_flipped_bit_is_found_by_the_page_checksum() -> None:
    data = bytearray(write_parquet([{"request_id": "a", "prompt": "the quick brown fox"}]))
    data[data.index(b"quick")] ^= 1
    (row,) = read_parquet(io.BytesIO(bytes(data)), "m.parquet")
    assert row["request_id"] == "a"
    assert isinstance(row["prompt"], BadCell)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_costs_rows_or_the_file_but_never_raises_otherwise(seed: int) -> None:
    rows = [{"request_id": f"r{i}", "prompt": f"p {i}", "control": ["x"]} for i in range(50)]
    chance = random.Random(seed)
    for data, read in (
        (write_parquet(rows), lambda data: read_parquet(io.BytesIO(data), "m")),
        (write_csv(rows), lambda data: read_csv(data, "m")),
        (write_jsonl(rows), lambda data: read_jsonl(data, "m")),
    ):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(ManifestError):
            assert all(isinstance(row, dict) for row in read(bytes(damaged)))


def test_text_that_is_not_utf8_costs_one_row() -> None:
    raw = pa.array([b"fine", b"\xff\xfe", None])
    text = pa.StringArray.from_buffers(3, *raw.buffers()[1:], raw.buffers()[0])
    rows = read_parquet(
        io.BytesIO(parquet({"request_id": ["a", "b", "c"], "prompt": text})), "m.parquet"
    )
    assert rows[0]["prompt"] == "fine"
    assert "not UTF-8" in rows[1]["prompt"].reason
    assert rows[2]["prompt"] is None


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\0" * 50])
def test_a_file_without_a_footer_is_an_error_by_name(data: bytes) -> None:
    with pytest.raises(ManifestError, match=r"m\.parquet: not a readable Parquet"):
        read_parquet(io.BytesIO(data), "m.parquet")


def test_a_truncated_parquet_file_is_an_error_by_name() -> None:
    data = parquet({"request_id": ["a"]})
    with pytest.raises(ManifestError, match=r"m\.parquet"):
        read_parquet(io.BytesIO(data[:-6]), "m.parquet")


def test_csv_of_other_programs() -> None:
    lines = [
        "\ufeffrequest_id,prompt,num_frames,control",
        '007,"a ""b"", c",12,"pose, canny"',
        "x,,,",
    ]
    text = "\r\n".join([*lines, ""])
    assert read_csv(text.encode(), "m.csv") == [
        {"request_id": "007", "prompt": 'a "b", c', "num_frames": 12, "control": ["pose", "canny"]},
        {"request_id": "x", "prompt": None, "num_frames": None, "control": None},
    ]


def test_csv_rows_of_the_wrong_width_keep_their_place() -> None:
    data = b"request_id,prompt\na,1\nb,2,3\nc,4\nd\ne,5\n"
    rows = read_csv(data, "m.csv")
    assert [row.get("request_id") for row in rows] == ["a", None, "c", None, "e"]
    assert "row 2 has 3 cells, the header has 2" in rows[1][WHOLE_ROW].reason


def test_csv_cell_that_is_not_utf8_costs_one_row() -> None:
    rows = read_csv(b"request_id,prompt\na,\xff\nb,fine\n", "m.csv")
    assert isinstance(rows[0]["prompt"], BadCell)
    assert rows[1]["prompt"] == "fine"


def test_csv_row_of_the_wrong_width_is_kept_even_if_it_is_not_utf8() -> None:
    rows = read_csv(b"request_id,prompt\na,1\nb,\xff,3\nc,4\n", "m.csv")
    assert len(rows) == 3
    assert "row 2 has 3 cells" in rows[1][WHOLE_ROW].reason


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (read_csv, b"request_id;prompt\na;b\n"),
        (read_csv, b"request_id,request_id\na,b\n"),
        (read_jsonl, b'{"request_id":"a"}\n{"request_id":"b","promt":"x"}\n'),
    ],
)
def test_unknown_and_double_columns_stop_the_manifest(read, data: bytes) -> None:
    with pytest.raises(ManifestError, match="column"):
        read(data, "m")


def test_jsonl_lines_that_are_no_objects_cost_one_row() -> None:
    rows = read_jsonl(b'{"request_id":"a"}\n\n{broken\n[1]\n\xff\n{"request_id":"b"}', "m.jsonl")
    assert rows[0] == {"request_id": "a"}
    assert rows[-1] == {"request_id": "b"}
    assert ["line 3 is not JSON" in rows[1][WHOLE_ROW].reason, len(rows)] == [True, 5]
    assert "line 4 is not an object" in rows[2][WHOLE_ROW].reason


def test_the_sample_parquet_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(write_parquet([{"request_id": str(i)} for i in range(2500)]))
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(i).num_rows for i in range(3)] == [1000, 1000, 500]
