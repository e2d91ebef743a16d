from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.windows_table import markdown, read_rows, summarise, variants
from musev.registry import get_profile

ROOT = Path(__file__).parents[2]
TWO = ("musev, overlap 4, flat", "rotating, 2 settling")
STUDIES = ("windows_rows.jsonl", "windows_rows_ships.jsonl")


def line(variant: str, clip: int, seam_ratio: float) -> dict[str, object]:
    scores = {"seam_ratio": seam_ratio, "pck_0.1": 0.5, "psnr": 20.0 + clip}
    return {"variant": variant, "num_steps": 10, "clip": clip, "seed": 0, "work": 1.5, **scores}


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_holds_the_table_of_the_measurements(name: str) -> None:
    page = (ROOT / "docs" / "windows-study.md").read_text(encoding="utf-8")
    assert markdown(summarise(read_rows(ROOT / "benchmarks" / name))) in page


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("profile", ["musev", "mini"])
def test_profiles_use_the_windows_with_the_fewest_seams(name: str, profile: str) -> None:
    """On 24 clips, at 10 steps, of those that do no more work than the original's."""
    lines = [
        line
        for line in summarise(read_rows(ROOT / "benchmarks" / name))
        if line["num_steps"] == 10 and line["clips"] == 24 and line["work"] <= 1.5
    ]
    assert len(lines) >= 5
    best = min(lines, key=lambda line: line["seam_ratio"][0])["variant"]
    (chosen,) = (variant for variant in variants() if variant.name == best)
    windows = get_profile(profile).sampling.windows
    assert {
        name: getattr(windows, name) for name in ("layout", "overlap", "blend", "settle_steps")
    } == (dataclasses.asdict(chosen))


def test_names_tell_variants_apart() -> None:
    names = [variant.name for variant in variants()]
    assert len(set(names)) == len(names)
    assert set(TWO) <= set(names)


def test_a_variant_is_compared_with_the_baseline_on_the_clips_both_have() -> None:
    rows = [line(TWO[0], clip, 1.0 + clip) for clip in range(3)]
    rows += [line(TWO[1], 1, 5.0), line(TWO[1], 7, 9.0)]
    found = {each["variant"]: each for each in summarise(rows)}
    assert found[TWO[0]]["seam_ratio"][0] == 2.0
    assert found[TWO[1]]["seam_ratio"][0] == 7.0
    assert found[TWO[1]]["clips"] == 2
    assert found[TWO[1]]["seam_ratio_difference"] == (3.0, 3.0, 3.0)  # clip 1 alone
    told = markdown(list(found.values())).splitlines()
    assert told[2].startswith("| 10 | musev, overlap 4, flat | 1.50 | 2.000 (1.000 to 3.000) |  |")
    assert "| 7.000 (5.000 to 9.000) | +3.000 (+3.000 to +3.000) |" in told[3]


def test_what_no_judge_could_say_counts_for_nothing() -> None:
    rows = [line(TWO[0], 0, 1.0), line(TWO[0], 1, float("nan")), line(TWO[1], 1, 2.0)]
    found = {each["variant"]: each for each in summarise(rows)}
    assert found[TWO[0]]["seam_ratio"] == (1.0, 1.0, 1.0)
    assert all(map(np.isnan, found[TWO[1]]["seam_ratio_difference"]))
    assert found[TWO[1]]["psnr_difference"] == (0.0, 0.0, 0.0)


def test_the_interval_is_over_clips_not_over_seeds() -> None:
    once = [line(TWO[0], clip, 1.0 + 2 * clip) for clip in range(2)]
    seeds = [{**row, "seed": seed} for row in once for seed in range(3)]
    (found,) = summarise(seeds)
    assert found["renders"] == 6
    assert found["seam_ratio"] == summarise(once)[0]["seam_ratio"] == (2.0, 1.0, 3.0)
