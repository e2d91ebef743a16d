"""A late start is the end of the whole way, bit for bit."""

from __future__ import annotations

import pytest
import torch

from musev.config import SamplingConfig, ScheduleConfig
from musev.denoise.late_start import start_late
from musev.denoise.solver_base import SolverState
from musev.denoise.solvers import Solver, make_solver


def solver_named(name: str, num_steps: int = 6) -> Solver:
    """Build a solver of Stable Diffusion's schedule."""
    return make_solver(SamplingConfig(solver=name, num_steps=num_steps), ScheduleConfig())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp", "lcm", "euler_ancestral", "ddpm"])
def test_the_late_steps_are_those_of_the_whole(name: str) -> None:
    """Same timesteps, same noise scale, same arithmetic."""
    whole = solver_named(name)
    late = start_late(whole, 0.5)
    assert late.timesteps == whole.timesteps[3:]
    torch.manual_seed(0)
    clean, noise, estimate = (torch.randn(1, 4, 2, 3, 3) for _ in range(3))
    noisy = late.add_noise(clean, noise, 0)
    assert torch.equal(noisy, whole.add_noise(clean, noise, 3))
    fresh = torch.randn_like(noise)
    ours = late.advance(SolverState(noisy), estimate, 1, fresh)
    theirs = whole.advance(SolverState(noisy), estimate, 4, fresh)
    assert torch.equal(ours.latents, theirs.latents)
    assert torch.equal(late.scale_input(noisy, 1), whole.scale_input(noisy, 4))
    assert late.needs_noise(1) == whole.needs_noise(4)
    assert late.upstream_draws(2) == whole.upstream_draws(5)


def test_full_strength_is_the_whole_solver_and_the_least_is_one_step() -> None:
    """Nothing is left out at 1; at least one step remains."""
    whole = solver_named("ddim")
    assert start_late(whole, 1.0) is whole
    assert start_late(whole, 0.01).num_steps == 1
