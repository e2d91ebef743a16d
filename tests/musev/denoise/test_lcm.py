"""Consistency sampling: boundary condition, and noise of exactly the next timestep."""

from __future__ import annotations

import math

import pytest
import torch

from musev.config import ScheduleConfig
from musev.denoise.lcm import LcmOptions, make_lcm
from musev.denoise.solver_base import SolverState
from musev.errors import ConfigError

SD15 = ScheduleConfig()
ONE = torch.ones(1, 1, 1, 1, 1)


def test_a_perfect_estimate_is_noised_to_the_next_timestep() -> None:
    solver = make_lcm(SD15, 4, LcmOptions())
    noise = 2 * ONE
    for step in range(3):
        start = solver.add_noise(ONE, 0.5 * ONE, step)
        moved = solver.advance(SolverState(start), 0.5 * ONE, step, noise).latents
        # At large timesteps the boundary scales are 0 and 1 to a few 1e-8.
        torch.testing.assert_close(moved, solver.add_noise(ONE, noise, step + 1), atol=1e-5, rtol=0)
    start = solver.add_noise(ONE, 0.5 * ONE, 3)
    end = solver.advance(SolverState(start), 0.5 * ONE, 3).latents
    torch.testing.assert_close(end, ONE, atol=1e-5, rtol=0)


def test_boundary_scales_keep_latents_at_small_scaled_timesteps() -> None:
    """c_skip = 0.25 / (s^2 + 0.25) and c_out = s / sqrt(s^2 + 0.25), s = timestep * scaling."""
    solver = make_lcm(SD15, 1, LcmOptions(original_inference_steps=1000, timestep_scaling=5e-4))
    scaled = solver.timesteps[0] * 5e-4
    clean = 3.0
    alpha, sigma = solver.alphas_cumprod[0] ** 0.5, (1 - solver.alphas_cumprod[0]) ** 0.5
    latents = alpha * clean * ONE + sigma * 0.7 * ONE
    found = float(solver.advance(SolverState(latents), 0.7 * ONE, 0).latents)
    root = math.sqrt(scaled**2 + 0.25)
    expected = scaled / root * clean + 0.25 / root**2 * float(latents)
    assert found == pytest.approx(expected, rel=1e-4)


def test_clipping_comes_before_the_boundary_scales() -> None:
    config = ScheduleConfig(clip_sample=True)
    solver = make_lcm(config, 1, LcmOptions(clip_sample_range=0.25))
    assert float(solver.advance(SolverState(50 * ONE), 0 * ONE, 0).latents) == pytest.approx(
        0.25, abs=1e-5
    )


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="original_inference_steps must be at least 1"):
        LcmOptions(original_inference_steps=0)
    with pytest.raises(ConfigError, match="at most 50, got 60"):
        make_lcm(SD15, 60, LcmOptions())
