from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.wavefront_sim import CASES, FIGURE, describe, main, run_case

SMALL = [case for case in CASES if case.table and case.frames * case.steps < 10_000]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.frames}-{case.workers}")
def test_the_planner_reaches_what_the_design_promises(case) -> None:
    row = describe(case, *run_case(case))
    lockstep, wavefront = case.table
    assert row["efficiency"] == pytest.approx(wavefront, abs=0.01)
    # One draw of chance; the table's own was another.
    assert row["barrier_efficiency"] == pytest.approx(lockstep, abs=0.04)
    assert row["efficiency"] <= row["bound"]


def test_json_holds_the_one_case_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "sim.json"
    arguments = ["--frames", "100", "--workers", "3", "--steps", "4", "--slow", "2", "--slow", "3"]
    rows = main([*arguments, "--videos", "2", "--json", str(target)])
    (row,) = json.loads(target.read_text())
    assert row["efficiency"] == rows[0]["efficiency"]
    assert row["tasks"] == 2 * 12 * 4
    assert row["case"]["slow"] == [2.0, 3.0]
    assert 0 < row["barrier_efficiency"] < row["efficiency"] <= 1
    # Work is conserved: 96 tasks of a second, on 1 + 1/2 + 1/3 workers.
    busy = row["efficiency"] * row["seconds"] * (1 + 1 / 2 + 1 / 3)
    assert busy == pytest.approx(96, rel=0.02)


def test_the_page_shows_the_figure_that_this_draws(tmp_path: Path) -> None:
    target = tmp_path / "figure.png"
    assert main(["--figure", str(target)]) == []
    drawn = Image.open(target)
    kept = Image.open(Path(__file__).parents[2] / "docs" / "images" / "wavefront.png")
    assert drawn.size == kept.size
    assert target.stat().st_size < 200_000
    front, barrier = run_case(FIGURE)
    assert front.efficiency > 0.95 > 0.75 > barrier.efficiency
