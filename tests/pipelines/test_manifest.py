from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from musev.errors import ManifestError
from musev.registry import get_profile
from pipelines.manifest import (
    folder_of,
    read_manifest,
    rebase_media,
    resolve_rows,
    split_writable,
    write_manifest,
)
from pipelines.rows import WHOLE_ROW, BadCell
from pipelines.tables import write_parquet

ROWS = [
    {"request_id": "a", "prompt": "p", "condition_image": "img/a.png", "control": None},
    {"request_id": "b", "prompt": "", "condition_image": None, "control": ["pose", "x,y"]},
]


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl", "m.ndjson", "m.PQ"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    target = tmp_path / "new folder" / name
    write_manifest(ROWS, str(target))
    found = read_manifest(str(target))
    assert found.rows == ROWS
    assert found.base_uri == f"file://{tmp_path}/new folder"
    assert [path.name for path in target.parent.iterdir()] == [name]


def test_object_storage_uri() -> None:
    write_manifest(ROWS, "memory://set/m.csv")
    found = read_manifest("memory://set/m.csv")
    assert (found.rows, found.base_uri, found.format) == (ROWS, "memory:///set", "csv")
    assert folder_of("memory://set/other.parquet") == found.base_uri


def test_relative_path_gives_an_absolute_base(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(ROWS, "m.csv")
    assert read_manifest("m.csv").base_uri == f"file://{tmp_path}"


def test_folder_of_parquet_files_in_name_order(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        path = tmp_path / "set" / f"part-{number}.parquet"
        write_manifest([{"request_id": str(number)}], str(path))
    (tmp_path / "set" / "_SUCCESS").write_text("")
    (tmp_path / "set" / ".part-9.parquet").write_bytes(b"half written")
    found = read_manifest(str(tmp_path / "set"))
    assert [row["request_id"] for row in found.rows] == ["0", "1", "2"]
    assert found.base_uri == f"file://{tmp_path}/set"


def test_one_unreadable_file_of_a_folder_is_one_failure(tmp_path: Path) -> None:
    write_manifest([{"request_id": "a", "prompt": "p"}], str(tmp_path / "part-0.parquet"))
    (tmp_path / "part-1.parquet").write_bytes(write_parquet(ROWS)[:-9])
    found = read_manifest(str(tmp_path))
    assert list(found.rows[1]) == [WHOLE_ROW]
    requests, failures = resolve_rows(found.rows, get_profile("mini"), found.base_uri)
    assert [request.request_id for request in requests] == ["a"]
    assert failures[0].request_id == "row-2"
    assert "part-1.parquet" in failures[0].message


def test_a_misspelt_column_in_a_folder_stops_the_manifest(tmp_path: Path) -> None:
    write_manifest([{"request_id": "a", "prompt": "p"}], str(tmp_path / "part-0.parquet"))
    pq.write_table(pa.table({"request_id": ["b"], "promt": ["p"]}), tmp_path / "part-1.parquet")
    with pytest.raises(ManifestError, match="Did you mean 'prompt'"):
        read_manifest(str(tmp_path))


def test_a_folder_with_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no Parquet files"):
        read_manifest(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ManifestError, match="none of the 1"):
        read_manifest(str(tmp_path))


def test_task_yaml(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text('- {name: a, prompt: "x|y"}')
    found = read_manifest(str(tmp_path / "t.yaml"))
    assert [row["request_id"] for row in found.rows] == ["a-1", "a-2"]
    with pytest.raises(ManifestError, match="cannot write yaml"):
        write_manifest(found.rows, str(tmp_path / "u.yaml"))


@pytest.mark.parametrize(
    ("name", "data", "phrase"),
    [
        ("m.csv", b"", "is empty"),
        ("m.jsonl", b"\n \n", "is empty"),
        ("m.parquet", b"", "not a readable Parquet"),
        ("m.yaml", b"- a: \xff", "not UTF-8"),
        ("m.xlsx", b"x", "unknown format"),
        ("manifest", b"x", "unknown format"),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, name: str, data: bytes, phrase: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ManifestError, match=phrase):
        read_manifest(str(tmp_path / name))


@pytest.mark.parametrize("uri", ["nowhere/m.csv", "memory://nowhere/m.csv", "s9://x/m.csv"])
def test_no_such_manifest(uri: str) -> None:
    with pytest.raises(ManifestError, match="manifest"):
        read_manifest(uri)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "m.csv"
    write_manifest(ROWS, str(target))
    before = target.read_bytes()
    with pytest.raises(ManifestError):
        write_manifest([{"request_id": "a", "fps": "fast"}], str(target))
    assert target.read_bytes() == before


def test_rows_that_cannot_be_written_are_told_apart() -> None:
    rows = [
        {"request_id": "a", "fps": None},
        {"request_id": "b", "fps": "fast"},
        {WHOLE_ROW: BadCell("line 3 is not JSON.")},
        {"request_id": "d", "prompt": BadCell("damaged")},
        {"request_id": "e", "other": 1},
    ]
    writable, problems = split_writable(rows)
    assert writable == rows[:1]
    starts = ["row 2, column 'fps'", "row 3: line 3", "row 4, column 'prompt'", "row 5, column"]
    assert all(p.startswith(s) for p, s in zip(problems, starts, strict=True))


def test_media_keep_pointing_at_the_same_files() -> None:
    row = {
        "request_id": "a",
        "condition_image": "a.png",
        "video": "s3://b/v.mp4",
        "prompt": "a.png",
    }
    moved = rebase_media(row, "file:///old", "file:///new")
    assert moved == row | {"condition_image": "file:///old/a.png"}
    assert rebase_media(row, "file:///old", "file:///old") == row
    outside = {"request_id": "a", "condition_image": "../a.png"}
    assert rebase_media(outside, "file:///old", "file:///new") == outside


@pytest.mark.parametrize("name", ["m.parquet", "m.csv"])
def test_s3(s3_server, s3_uri: str, name: str) -> None:
    options = s3_server.storage_options
    write_manifest(ROWS, f"{s3_uri}/set/{name}", storage_options=options)
    found = read_manifest(f"{s3_uri}/set/{name}", storage_options=options)
    assert (found.rows, found.base_uri) == (ROWS, f"{s3_uri}/set")
    with pytest.raises(ManifestError, match="no manifest at"):
        read_manifest(f"{s3_uri}/set/other.csv", storage_options=options)


def test_a_folder_on_s3_grows(s3_server, s3_uri: str) -> None:
    options = s3_server.storage_options
    for number in range(2):
        part = f"{s3_uri}/set/part-{number}.parquet"
        write_manifest([{"request_id": str(number)}], part, storage_options=options)
        found = read_manifest(f"{s3_uri}/set", storage_options=options)
        assert len(found.rows) == number + 1
