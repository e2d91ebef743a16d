"""Guidance scales equal the original's lists; guidance itself has two fixed points."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musev.config import GuidanceConfig
from musev.denoise.guidance import guidance_scales, guide, scale_course
from tests.goldens import GOLDENS, have_goldens, model_case, model_index, require_goldens

FUNCTION_CASES = [
    name for name in model_index() if name.startswith("fn_generate_parameters_with_timesteps")
] or ["missing"]
SCHEDULES = ("constant", "linear", "two_stage", "three_stage", "fix_two_stage")


def listed_cases() -> list[Any]:
    if not have_goldens():
        return [pytest.param(None, marks=pytest.mark.parity)]
    file = GOLDENS / "pipeline" / "functions" / "guidance_schedule.json"
    return json.loads(file.read_text())


@pytest.mark.parity
@pytest.mark.parametrize("name", FUNCTION_CASES)
def test_function_cases_are_equal(name: str) -> None:
    case, _, io = model_case(name)
    call = case["call"]
    found = scale_course(call["start"], call["stop"], call["num"], call["method"])
    assert list(found) == io["out.out"].tolist()


@pytest.mark.parity
@pytest.mark.parametrize(
    "case", listed_cases(), ids=lambda case: case and "{num}-{method}".format(**case)
)
def test_listed_pipeline_cases_are_equal(case: dict[str, Any]) -> None:
    require_goldens()
    found = scale_course(case["start"], case["stop"], case["num"], case["method"])
    assert list(found) == case["out"]


@settings(max_examples=80, deadline=None)
@given(
    st.floats(0, 30), st.none() | st.floats(0, 30), st.sampled_from(SCHEDULES), st.integers(1, 60)
)
def test_every_step_has_a_scale_between_the_ends(
    start: float, end: float | None, schedule: Any, num_steps: int
) -> None:
    config = GuidanceConfig(scale=start, scale_end=end, schedule=schedule)
    scales = guidance_scales(config, num_steps)
    assert len(scales) == num_steps
    low, high = sorted((start, start if end is None else end))
    rounding = 1.0 if schedule == "three_stage" else 1e-9  # the middle is rounded down
    assert all(low - rounding <= scale <= high + 1e-9 for scale in scales)
    if end is None or schedule == "constant":
        assert set(scales) == {start}


def test_scale_one_is_the_conditional_and_zero_the_unconditional_estimate() -> None:
    uncond, cond = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    assert torch.equal(guide(uncond, cond, 0.0), uncond)
    assert torch.equal(guide(uncond, cond, 1.0), cond)
    assert torch.equal(guide(uncond, cond, 2.0), torch.tensor([5.0, -6.0]))
