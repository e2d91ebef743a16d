"""DDIM and DDPM against closed forms for unit Gaussian data."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from musev.config import ScheduleConfig
from musev.denoise.ddim import DdimOptions, DdpmOptions, make_ddim, make_ddpm
from musev.denoise.solver_base import SolverState
from musev.errors import ConfigError

SD15 = ScheduleConfig()
ONE = torch.ones(1, 1, 1, 1, 1)


def test_halving_the_step_halves_the_error() -> None:
    """The exact path of N(0, 1) data at unit variance stands still; DDIM drifts to first order."""

    def end_error(num_steps: int) -> float:
        solver = make_ddim(SD15, num_steps, DdimOptions())
        state = SolverState(ONE)
        for step in range(num_steps):
            noise = state.latents * math.sqrt(1 - solver.alphas_cumprod[step])
            state = solver.advance(state, noise, step)
        return abs(float(state.latents) - 1)

    errors = [end_error(steps) for steps in (25, 50, 100, 200)]
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    assert all(1.8 < ratio < 2.2 for ratio in ratios), ratios


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_perfect_estimate_lands_on_the_next_share(eta: float) -> None:
    """Knowing clean latents and noise, a step gives sqrt(a') clean + noise of variance 1 - a'."""
    solver = make_ddim(SD15, 10, DdimOptions(eta=eta))
    for step in range(10):
        start = solver.add_noise(ONE, 0 * ONE, step)
        signal = float(solver.advance(SolverState(start), 0 * ONE, step, 0 * ONE).latents)
        start = solver.add_noise(0 * ONE, ONE, step)
        kept = float(solver.advance(SolverState(start), ONE, step, 0 * ONE).latents)
        both = float(solver.advance(SolverState(start), ONE, step, ONE).latents)
        target = solver.targets[step]
        assert signal == pytest.approx(math.sqrt(target), rel=1e-5)
        assert math.hypot(kept, both - kept) == pytest.approx(math.sqrt(1 - target), abs=1e-5)


def test_eta_one_is_ddpm() -> None:
    """arXiv 2010.02502, section 4.1: the same posterior mean and variance."""
    config = dataclasses.replace(SD15, set_alpha_to_one=True)
    ddim = make_ddim(config, 10, DdimOptions(eta=1.0))
    ddpm = make_ddpm(config, 10, DdpmOptions())
    latents, estimate, noise = torch.randn(3, 1, 4, 2, 3, 3)
    for step in range(10):
        first = ddim.advance(SolverState(latents), estimate, step, noise).latents
        second = ddpm.advance(SolverState(latents), estimate, step, noise).latents
        torch.testing.assert_close(first, second, atol=3e-6, rtol=3e-6)


def test_large_variance_is_the_whole_beta() -> None:
    small = make_ddpm(SD15, 10, DdpmOptions())
    large = make_ddpm(SD15, 10, DdpmOptions(variance_type="fixed_large"))
    for step in range(10):
        beta = 1 - large.alphas_cumprod[step] / large.targets[step]
        silent = large.advance(SolverState(ONE), ONE, step, 0 * ONE).latents
        loud = large.advance(SolverState(ONE), ONE, step, ONE).latents
        assert float(loud - silent) == pytest.approx(math.sqrt(beta), rel=1e-4)
        assert large.needs_noise(step)
        assert small.needs_noise(step) == (step < 9)


def test_log_variance_is_the_same_variance() -> None:
    plain = make_ddpm(SD15, 5, DdpmOptions())
    log = make_ddpm(SD15, 5, DdpmOptions(variance_type="fixed_small_log"))
    latents, estimate, noise = torch.randn(3, 1, 4, 2, 3, 3)
    for step in range(5):
        first = plain.advance(SolverState(latents), estimate, step, noise).latents
        assert torch.equal(first, log.advance(SolverState(latents), estimate, step, noise).latents)


def test_clipping_limits_the_clean_latents() -> None:
    config = dataclasses.replace(SD15, clip_sample=True, set_alpha_to_one=True)
    ddim = make_ddim(config, 4, DdimOptions(clip_sample_range=0.5))
    ddpm = make_ddpm(config, 4, DdpmOptions(clip_sample_range=0.5))
    for solver in (ddim, ddpm):  # the last step ends at the clean latents themselves
        assert float(solver.advance(SolverState(9 * ONE), ONE, 3, 0 * ONE).latents) == 0.5
    # With the implied noise recomputed, latents = sqrt(a) clean + sqrt(1 - a) noise still holds.
    again = make_ddim(config, 4, DdimOptions(use_clipped_model_output=True))
    moved = again.advance(SolverState(9 * ONE), ONE, 0).latents
    share, target = again.alphas_cumprod[0], again.targets[0]
    noise = (9 - math.sqrt(share)) / math.sqrt(1 - share)
    expected = math.sqrt(target) + math.sqrt(1 - target) * noise
    assert float(moved) == pytest.approx(expected, rel=1e-5)


def test_the_end_is_the_first_share_or_all_signal() -> None:
    first = make_ddim(SD15, 4, DdimOptions()).targets[-1]
    assert first == pytest.approx(1 - 0.00085, abs=1e-6)
    whole = dataclasses.replace(SD15, set_alpha_to_one=True)
    assert make_ddim(whole, 4, DdimOptions()).targets[-1] == 1.0
    assert make_ddpm(SD15, 4, DdpmOptions()).targets[-1] == 1.0


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="eta must not be negative"):
        DdimOptions(eta=-0.1)
    with pytest.raises(ConfigError, match="variance_type must be"):
        DdpmOptions(variance_type="learned")
