from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.unet_step import CASES, Case, count_flops, main

PARTS_OF_THE_ORIGINAL = {  # COST.md: parts that cannot be saved, so they must be counted whole
    "resnets": 8.96,
    "temporal transformers": 7.35,
    "temporal convolutions": 4.38,
    "spatial feed-forward": 3.99,
    "spatial proj_in/out": 0.67,
}


def test_a_guided_step_costs_what_is_left_without_the_waste() -> None:
    """41.405 TFLOP in the original; 1.2 of it projects the same keys and values again."""
    counted = count_flops(Case(guidance=True))
    assert counted["step_tflop"] <= 40.4
    for part, tflop in PARTS_OF_THE_ORIGINAL.items():
        assert counted["parts_tflop"][part] == pytest.approx(tflop, abs=0.01), part
    assert sum(counted["parts_tflop"].values()) == pytest.approx(counted["step_tflop"])
    # What a request pays once is a thousandth of what it pays every step.
    assert counted["prepare_tflop"] < 0.002 * counted["step_tflop"]


def test_json_holds_the_one_case_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "step.json"
    rows = main(["--size", "256x256", "--json", str(target)])
    assert json.loads(target.read_text())[0]["step_tflop"] == rows[0]["step_tflop"]
    assert len(rows) == 1
    assert rows[0]["case"]["baseline"] == CASES[0].baseline
