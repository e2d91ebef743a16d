from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from musev.errors import ConfigError, ManifestError
from pipelines.clip_table import ClipTable, parse_names, read_clip_table

HEADER = "clip_id,video,caption,start_s,mood\n"


def table(folder: Path, text: str, name: str = "clips.csv", **names: str) -> ClipTable:
    (folder / name).write_text(text)
    return read_clip_table(str(folder / name), names)


def test_a_good_row_becomes_a_clip(tmp_path: Path) -> None:
    found = table(tmp_path, HEADER + "a,v/a.mp4,a man walks,1.5,glad\nb,s3://b/c.mp4,x,,\n")
    first, second = found.rows
    assert found.failures == []
    assert (first.row, first.clip_id, first.caption, first.start_s) == (0, "a", "a man walks", 1.5)
    assert first.video == f"file://{tmp_path}/v/a.mp4"
    assert first.attributes == {"mood": "glad"}
    assert (second.row, second.video, second.start_s) == (1, "s3://b/c.mp4", 0.0)
    assert second.attributes == {}


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"clip_id": "a", "video": "a.mp4", "caption": "one", "start_s": 2.0, "stars": 3},
        {"clip_id": "b", "video": "b.mp4", "caption": "two, three", "start_s": None, "stars": 4},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text(
        'clip_id,video,caption,start_s,stars\na,a.mp4,one,2.0,3\nb,b.mp4,"two, three",,4\n'
    )
    (tmp_path / "t.jsonl").write_text(
        '{"clip_id":"a","video":"a.mp4","caption":"one","start_s":2.0,"stars":3}\n'
        '{"clip_id":"b","video":"b.mp4","caption":"two, three","stars":4}\n'
    )
    found = [read_clip_table(str(tmp_path / f"t.{kind}")) for kind in ("parquet", "csv", "jsonl")]
    assert found[0].rows == found[1].rows == found[2].rows
    assert [dict(row.attributes) for row in found[0].rows] == [{"stars": 3}, {"stars": 4}]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    text = "videoid,contentUrl,name,video\nv1,https://h/a.mp4,a cat,kept\n"
    names = {"clip_id": "videoid", "video": "contentUrl", "caption": "name"}
    (row,) = table(tmp_path, text, **names).rows
    assert (row.clip_id, row.video, row.caption) == ("v1", "https://h/a.mp4", "a cat")
    assert row.attributes == {"video": "kept"}


@pytest.mark.parametrize(
    ("line", "column", "value", "phrase"),
    [
        ("b,,x,,", "video", "", "is missing"),
        ("b,v.mp4,,,", "caption", "", "is missing"),
        ('b,v.mp4,"",,', "caption", "''", "empty text"),
        ("b,../v.mp4,x,,", "video", "'../v.mp4'", "outside the manifest's folder"),
        ("b,ftpp://h/v.mp4,x,,", "video", "'ftpp://h/v.mp4'", "Did you mean ftp"),
        ("b,v.mp4,x,-1,", "start_s", "-1.0", "at least 0"),
        ("b,v.mp4,x,soon,", "start_s", "'soon'", "must be a number"),
        ("a,v.mp4,x,,", "clip_id", "'a'", "row 1 has the same name"),
        ("b,v.mp4", "", "", "has 2 cells"),
    ],
)
def test_a_bad_row_fails_alone_and_says_why(
    tmp_path: Path, line: str, column: str, value: str, phrase: str
) -> None:
    found = table(tmp_path, f"{HEADER}a,v.mp4,x,,\n{line}\nc,v.mp4,x,,\n")
    assert [row.clip_id for row in found.rows] == ["a", "c"]
    assert [row.row for row in found.rows] == [0, 2]
    (failure,) = found.failures
    assert (failure.row, failure.column, failure.value) == (1, column, value)
    assert phrase in failure.message
    assert failure.line().startswith("row 2")
    assert found.num_rows == 3


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("clip_id,video,captoin\na,b,c\n", "no column 'caption' for caption. Did you mean"),
        ("clip_id,clip_id,video,caption\na,a,b,c\n", "appears twice"),
        (HEADER, "no rows"),
        ("", "empty"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, phrase: str) -> None:
    with pytest.raises(ManifestError, match=phrase):
        table(tmp_path, text)


def test_task_yaml_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not YAML"):
        table(tmp_path, "- {}", "t.yaml")


def test_names_of_columns() -> None:
    assert parse_names("") == {}
    assert parse_names("video = url, caption=name") == {"video": "url", "caption": "name"}
    for wrong in ("video", "video=", "film=url"):
        with pytest.raises(ConfigError, match="OURS=THEIRS"):
            parse_names(wrong)


def test_what_json_cannot_hold_costs_its_row_alone_and_nan_is_a_gap(tmp_path: Path) -> None:
    rows = [
        {"clip_id": "a", "video": "a.mp4", "caption": "one", "score": math.nan},
        {"clip_id": "b", "video": "b.mp4", "caption": "two", "score": math.inf},
        {"clip_id": "c", "video": "c.mp4", "caption": "three", "score": 0.5},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = read_clip_table(str(tmp_path / "t.parquet"))
    assert [(row.clip_id, row.attributes) for row in found.rows] == [
        ("a", {}),
        ("c", {"score": 0.5}),
    ]
    (failure,) = found.failures
    assert (failure.row, failure.column, failure.value) == (1, "score", "inf")
    half = '{"clip_id":"a","video":"a.mp4","caption":"one","title":"\\ud83d"}\n'
    (failure,) = table(tmp_path, half, "t.jsonl").failures
    assert (failure.column, failure.value) == ("title", r"'\ud83d'")
    assert "JSON has no such value" in failure.message
