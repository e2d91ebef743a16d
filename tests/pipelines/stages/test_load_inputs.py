"""The input stage as a plain function: one row in, one row out, never an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.outcomes import unsampled_id
from pipelines.rows import request_to_json
from pipelines.stages.load_inputs import load_inputs
from tests.pipelines.stand_ins import graph, picture, request


def check(folder: Path, **columns: Any) -> dict[str, Any]:
    wired = graph(folder)
    row = {"row": 4, "request": request_to_json(request("one", **columns))}
    return load_inputs(row, cache=wired.cache, name_sample=wired.name_sample)


def test_a_good_row_gets_its_sample_id_and_the_digest_of_every_picture(tmp_path: Path) -> None:
    face, coat = picture(tmp_path / "face.png"), picture(tmp_path / "coat.png", colour=7)
    row = check(tmp_path, condition_image=face, reference_image=coat)
    digests = json.loads(row["media_digests"])
    assert row["status"] == "ready"
    assert row["row"] == 4
    assert set(digests) == {"condition_image", "reference_image"}
    assert digests["condition_image"] != digests["reference_image"]


def test_the_sample_follows_the_pictures_content_not_its_place(tmp_path: Path) -> None:
    first = check(tmp_path, condition_image=picture(tmp_path / "a.png"))
    moved = check(tmp_path, condition_image=picture(tmp_path / "b.png"))
    other = check(tmp_path, condition_image=picture(tmp_path / "c.png", colour=101))
    assert first["sample_id"] == moved["sample_id"] != other["sample_id"]


def write_broken(path: Path, kind: str) -> None:
    good = Path(picture(path.with_name("good.png"), side=64)).read_bytes()
    content = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "text": b"this is no picture",
        "video": b"\x00\x00\x00\x18ftypisom" + bytes(64),
    }
    if kind != "missing":
        path.write_bytes(content[kind])


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "text", "video"])
def test_a_bad_picture_fails_its_row_with_class_stage_reason_and_remedy(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "face.png"
    write_broken(path, kind)
    row = check(tmp_path, condition_image=str(path))
    assert (row["status"], row["error_class"], row["error_stage"]) == (
        "failed",
        "MediaError",
        "load_inputs",
    )
    assert "face.png" in row["error_message"]
    assert row["error_message"].count(".") >= 2  # a reason, then a remedy
    assert row["sample_id"] == unsampled_id(request("one", condition_image=str(path)))


def test_an_unknown_error_fails_the_row_too_and_keeps_its_traceback(tmp_path: Path) -> None:
    def name_sample(*_: Any) -> str:
        raise ZeroDivisionError("a bug of ours")

    row = {"row": 0, "request": request_to_json(request("one"))}
    row = load_inputs(row, cache=graph(tmp_path).cache, name_sample=name_sample)
    assert row["status"] == "failed"
    assert row["error_class"] == "ZeroDivisionError"
    assert "--retry-failed" in row["error_message"]
    assert "name_sample" in row["error_traceback"]
