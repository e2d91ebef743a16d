from __future__ import annotations

import math

import numpy as np
import pytest

from musev.errors import ManifestError, RequestError
from pipelines.checks import check_names, check_value, media_uri, parse_cell
from pipelines.rows import MANIFEST_COLUMNS

BAD = [
    ("condition_image", "[a.png", "JSON list of paths"),
    ("condition_image", [1], "a path or a list of paths"),
    ("condition_image", [], "a path or a list of paths"),
    ("condition_index", [0.5], "whole numbers"),
    ("strength", 0.0, "above 0"),
    ("request_id", "", "empty"),
    ("request_id", "  ", "empty"),
    ("request_id", 7, "must be text, got int"),
    ("request_id", "a\nb", "control character"),
    ("request_id", "a\x00", "control character"),
    ("request_id", "x" * 201, "201 characters"),
    ("prompt", b"bytes", "must be text, got bytes"),
    ("prompt", "\ud800", "surrogate"),
    ("prompt", ["a"], "got list"),
    ("prompt", "bell\x07", "control character"),
    ("condition_image", "", "empty"),
    ("num_frames", 0, "at least 1"),
    ("num_frames", -3, "at least 1"),
    ("num_frames", 1_000_001, "at most 1000000"),
    ("num_frames", "12", "must be a whole number, got str"),
    ("num_frames", 12.5, "must be a whole number"),
    ("num_frames", True, "must be a whole number, got bool"),
    ("num_frames", math.nan, "finite"),
    ("num_frames", 10**400, "64 bits"),
    ("num_frames", [12], "got list"),
    ("fps", 0, "above 0"),
    ("fps", -0.0, "above 0"),
    ("fps", math.inf, "finite"),
    ("fps", math.nan, "finite"),
    ("fps", 10**400, "too large"),
    ("fps", "8", "must be a number, got str"),
    ("width", 100_000, "at most 8192"),
    ("seed", -1, "at least 0"),
    ("seed", 2**63, "64 bits"),
    ("steps", 1001, "at most 1000"),
    ("img_length_ratio", -0.5, "above 0"),
    ("layout", "musv", "Did you mean 'musev'"),
    ("guidance_schedule", "cosine", "must be one of"),
    ("w_ind_noise", 1.5, "at most 1"),
    ("video_is_control", "yes", "true or false"),
    ("control", ["pose", 3], "list of texts"),
    ("control_scale", [1.0, -0.5], "at least 0"),
    ("control_scale", [11], "at most 10"),
    ("control_scale", [math.nan], "finite"),
    ("extra", {"x": math.nan}, "JSON"),
    ("extra", b"x", "text or JSON"),
]

GOOD = [
    ("num_frames", 12.0, 12),
    ("num_frames", 1_000_000, 1_000_000),
    ("num_frames", np.int32(5), 5),
    ("fps", 8, 8.0),
    ("fps", np.float32(0.5), 0.5),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("prompt", "two\nlines", "two\nlines"),
    ("negative_prompt", "", ""),
    ("extra", {"b": [1], "a": None}, '{"a":null,"b":[1]}'),
    ("extra", "free text", "free text"),
    ("video_is_control", False, False),
    ("video_has_condition", True, True),
    ("control", [], []),
    ("control_scale", [1], [1.0]),
    ("strength", 0.8, 0.8),
    ("condition_image", "a.png", "a.png"),
    ("condition_image", ["a.png", "b.png"], ["a.png", "b.png"]),
    ("reference_image", '["a.png", "b.png"]', ["a.png", "b.png"]),
    ("ip_adapter_image", ["a.png"], "a.png"),
    ("condition_index", [0, -1], [0, -1]),
    ("condition_index", [0.0, 5], [0, 5]),
]


@pytest.mark.parametrize(("name", "value", "phrase"), BAD)
def test_bad_values_are_refused_with_the_right_words(name: str, value, phrase: str) -> None:
    with pytest.raises(RequestError, match=phrase):
        check_value(MANIFEST_COLUMNS[name], value)


def test_type_is_checked_first() -> None:
    with pytest.raises(RequestError, match="must be text"):
        check_value(MANIFEST_COLUMNS["video"], 5)


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_good_values_take_the_columns_type(name: str, value, expected) -> None:
    found = check_value(MANIFEST_COLUMNS[name], value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("num_frames", " 12 ", 12),
        ("num_frames", "12.5", "12.5"),
        ("fps", "1e1", 10.0),
        ("fps", "fast", "fast"),
        ("fps", "", None),
        ("video_is_control", "TRUE", True),
        ("video_is_control", "1", "1"),
        ("control", "pose, canny", ["pose", "canny"]),
        ("control", '["a,b"]', ["a,b"]),
        ("control", "[broken", "[broken"),
        ("control_scale", "1,0.5", [1.0, 0.5]),
        ("prompt", "12", "12"),
        ("request_id", "007", "007"),
    ],
)
def test_parse_cell(name: str, text: str, expected) -> None:
    assert parse_cell(MANIFEST_COLUMNS[name], text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", "s3://bucket/set/a.png"),
        ("./sub/../a b.png", "s3://bucket/set/a b.png"),
        ("/data/x/../a.png", "file:///data/a.png"),
        ("file:///data//a.png", "file:///data/a.png"),
        ("s3://other/a/../b.png", "s3://other/a/../b.png"),  # a literal key on an object store
        ("memory://a.png", "memory://a.png"),
        ("zip://a.png::s3://b/c.zip", "zip://a.png::s3://b/c.zip"),
    ],
)
def test_media_paths_become_absolute(value: str, expected: str) -> None:
    assert media_uri(value, "s3://bucket/set") == expected


def test_media_beside_a_manifest_in_the_root_folder() -> None:
    assert media_uri("a.png", "file:///") == "file:///a.png"


@pytest.mark.parametrize(
    ("value", "phrase"),
    [
        ("../a.png", "path outside"),
        ("a/../../b.png", "path outside"),
        ("..", "path outside"),
        (".", "path outside"),
        ("s4://bucket/a.png", "no storage driver"),
        ("file://a.png", "three slashes"),
        ("C:\\pictures\\a.png", "Windows path"),
    ],
)
def test_media_paths_that_point_nowhere_sensible(value: str, phrase: str) -> None:
    with pytest.raises(RequestError, match=phrase):
        media_uri(value, "file:///data")


@pytest.mark.parametrize(
    ("names", "phrase"),
    [
        (["request_id", "promt"], "'promt'. Did you mean 'prompt'?"),
        (["request_id", "refer_image"], "Did you mean 'reference_image'"),
        (["request_id", "request_id"], "twice"),
        (["zzzz"], "unknown column 'zzzz'"),
    ],
)
def test_column_names_are_never_ignored(names: list[str], phrase: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check_names(names, "m.csv")
    assert phrase in str(caught.value)
    assert "m.csv" in str(caught.value)
