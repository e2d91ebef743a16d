from __future__ import annotations

import json
from typing import Any

import pytest

from musev.errors import RequestError
from pipelines.frame_sizes import limit_length, limit_ratio, scaled_side
from tests.goldens import GOLDENS, have_goldens, require_goldens

FOLDER = GOLDENS / "pipeline" / "functions"


def recorded(name: str) -> Any:
    return json.loads((FOLDER / name).read_text()) if have_goldens() else None


LIMITS = recorded("gradio_limits.json") or {"limit_shape": [{}], "limit_length": [(0, 0)]}
SIZES = recorded("size_rounding.json") or [{}]


@pytest.mark.parity
@pytest.mark.parametrize("number", range(len(LIMITS["limit_shape"])))
def test_limits_of_the_app_equal_the_originals(number: int) -> None:
    require_goldens()
    case = LIMITS["limit_shape"][number]
    found = limit_ratio(
        case["input_w"],
        case["input_h"],
        case["img_edge_ratio"],
        max_edge=case["max_image_edge"],
        image_size=(case["image_w"], case["image_h"]),
    )
    assert list(found) == case["out"]


@pytest.mark.parity
@pytest.mark.parametrize(("asked", "expected"), LIMITS["limit_length"])
def test_lengths_of_the_app_equal_the_originals(asked: int, expected: int) -> None:
    require_goldens()
    assert limit_length(asked) == expected


@pytest.mark.parity
@pytest.mark.parametrize("number", range(len(SIZES)))
def test_rounding_equals_the_originals(number: int) -> None:
    require_goldens()
    case = SIZES[number]
    for side in ("width", "height"):
        found = scaled_side(case[side], case["img_length_ratio"], multiple=64)
        assert found == case[f"out_{side}"]


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(RequestError, match="no size"):
        limit_ratio(0, 0, 1.0, max_edge=1280, image_size=(64, 64))
