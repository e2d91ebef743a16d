"""Euler against closed forms: order of convergence, churn and ancestral variance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from musev.config import ScheduleConfig
from musev.denoise.euler import (
    MAX_CHURN,
    Euler,
    EulerAncestralOptions,
    EulerOptions,
    make_euler,
    make_euler_ancestral,
)
from musev.denoise.solver_base import SolverState
from musev.errors import ConfigError

SD15 = ScheduleConfig()


def end_error(num_steps: int, *, prediction: str, karras: bool) -> float:
    """Error at the end for N(0, 1) data, whose denoiser and path are known in closed form.

    Source: STYLE.md 5; clean = noisy / (1 + sigma**2), end = noisy / sqrt(1 + sigma**2).
    """
    config = ScheduleConfig(prediction_type=prediction, timestep_spacing="trailing")
    solver = make_euler(config, num_steps, EulerOptions(use_karras_sigmas=karras))
    start = torch.ones(1, 1, 1, 1, 1, dtype=torch.float32) * solver.initial_scale
    state = SolverState(start)
    for step in range(solver.num_steps):
        sigma = solver.sigmas[step]
        clean = state.latents / (1 + sigma**2)
        noise = (state.latents - clean) / sigma
        root = math.sqrt(1 + sigma**2)
        estimate = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": noise / root - sigma / root * clean,
        }[prediction]
        state = solver.advance(state, estimate, step)
    exact = float(start) / math.sqrt(1 + solver.sigmas[0] ** 2)
    return abs(float(state.latents) - exact)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("karras", [False, True])
def test_halving_the_step_halves_the_error(prediction: str, karras: bool) -> None:
    errors = [
        end_error(steps, prediction=prediction, karras=karras) for steps in (50, 100, 200, 400)
    ]
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    assert all(1.8 < ratio < 2.2 for ratio in ratios), ratios


def test_churn_adds_exactly_the_variance_it_raises_sigma_by() -> None:
    solver = make_euler(SD15, 10, EulerOptions(s_churn=3.0, s_noise=1.5))
    sigma, target = solver.sigmas[2], solver.sigmas[3]
    raised = sigma * 1.3
    state = SolverState(torch.zeros(1, 1, 1, 1, 1))
    one = torch.ones(1, 1, 1, 1, 1)
    # With a zero estimate the slope is zero, so only the added noise is left.
    moved = solver.advance(state, 0 * one, 2, one).latents
    assert float(moved) == pytest.approx(1.5 * math.sqrt(raised**2 - sigma**2), rel=1e-6)
    # A constant estimate is the slope: the path is a line from the raised sigma to the next.
    moved = solver.advance(state, one, 2, 0 * one).latents
    assert float(moved) == pytest.approx(target - raised, rel=1e-6)


def test_churn_has_a_limit_and_a_range() -> None:
    solver = make_euler(SD15, 10, EulerOptions(s_churn=1e6, s_tmin=0.5, s_tmax=2.0))
    needed = [solver.needs_noise(step) for step in range(10)]
    assert needed == [0.5 <= sigma <= 2.0 for sigma in solver.sigmas[:-1]]
    assert any(needed)
    step = needed.index(True)
    state, one = SolverState(torch.zeros(1, 1, 1, 1, 1)), torch.ones(1, 1, 1, 1, 1)
    moved = float(solver.advance(state, one, step, 0 * one).latents)
    raised = solver.sigmas[step] * (1 + MAX_CHURN)
    assert moved == pytest.approx(solver.sigmas[step + 1] - raised, rel=1e-6)


def test_scaled_input_has_unit_variance() -> None:
    solver = make_euler(SD15, 5, EulerOptions())
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 8, 32, 32, generator=generator)
    for step in range(5):
        scaled = solver.scale_input(solver.add_noise(clean, noise, step), step)
        assert float(scaled.std()) == pytest.approx(1.0, abs=0.01)


def test_log_linear_sigmas_end_above_zero() -> None:
    """Upstream's quirk: one sigma more than steps, so the last step ends at the smallest."""
    solver = make_euler(SD15, 5, EulerOptions(interpolation_type="log_linear"))
    assert len(solver.sigmas) == 7
    ratios = [b / a for a, b in zip(solver.sigmas[:-2], solver.sigmas[1:-1], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 5)


def test_ancestral_steps_end_with_the_variance_of_their_sigma() -> None:
    """The part that is kept and the part that is added make up the next sigma."""
    solver = make_euler_ancestral(SD15, 8, EulerAncestralOptions())
    one = torch.ones(1, 1, 1, 1, 1)
    for step in range(8):
        sigma, target = solver.sigmas[step], solver.sigmas[step + 1]
        state = SolverState(one * sigma)  # pure noise of one sigma around zero
        kept = float(solver.advance(state, one, step, 0 * one).latents)
        both = float(solver.advance(state, one, step, one).latents)
        assert math.hypot(kept, both - kept) == pytest.approx(target, rel=1e-5, abs=1e-6)
    assert solver.sigmas[-1] == 0


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="interpolation_type must be"):
        EulerOptions(interpolation_type="cubic")
    with pytest.raises(ConfigError, match="s_churn must not be negative"):
        EulerOptions(s_churn=-1.0)
    assert isinstance(make_euler(SD15, 3, EulerOptions()), Euler)
