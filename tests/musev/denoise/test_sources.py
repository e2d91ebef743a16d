"""Noise sources: what is drawn, when, and that it repeats."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from musev.config import SamplingConfig, ScheduleConfig
from musev.denoise.solvers import make_solver
from musev.denoise.sources import make_noise_source
from musev.errors import ConfigError, ShapeError

SHAPE = (1, 4, 5, 8, 8)


def test_counter_source_repeats_in_any_order() -> None:
    """A draw depends on seed, frame and step alone, not on what was drawn before."""
    sampling = SamplingConfig(solver="euler_ancestral", num_steps=4)
    solver = make_solver(sampling, ScheduleConfig())
    first, second = make_noise_source(sampling, 7), make_noise_source(sampling, 7)
    forward = [first.during(solver, step, SHAPE) for step in range(4)]
    backward = [second.during(solver, step, SHAPE) for step in reversed(range(4))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other)


def test_streams_seeds_steps_and_clips_differ() -> None:
    """Initial noise, step noise, another seed and the next clip of a batch are all different."""
    sampling = SamplingConfig(solver="ddpm", num_steps=4)
    solver = make_solver(sampling, ScheduleConfig())
    source = make_noise_source(sampling, 7)
    draws = [
        source.initial(SHAPE),
        source.during(solver, 0, SHAPE),
        source.during(solver, 1, SHAPE),
        make_noise_source(sampling, 8).initial(SHAPE),
        source.initial((2, *SHAPE[1:]))[1:],
    ]
    for index, one in enumerate(draws):
        for other in draws[index + 1 :]:
            assert (one - other).abs().mean() > 0.5


def test_first_frame_shifts_the_frame_numbers() -> None:
    """Frame 3 of the video is frame 2 of what is generated behind one conditioning frame."""
    sampling = SamplingConfig()
    whole = make_noise_source(sampling, 1).initial(SHAPE)
    behind = make_noise_source(sampling, 1, first_frame=1).initial(SHAPE)
    assert torch.equal(whole[:, :, 1:], behind[:, :, :-1])


@pytest.mark.parametrize("solver_name", ["ddim", "dpmpp"])
def test_deterministic_solvers_draw_nothing(solver_name: str) -> None:
    """No noise is computed where the formula has no noise term."""
    sampling = SamplingConfig(solver=solver_name, num_steps=4)
    solver = make_solver(sampling, ScheduleConfig())
    source = make_noise_source(sampling, 1)
    assert all(source.during(solver, step, SHAPE) is None for step in range(4))


def test_upstream_euler_consumes_a_draw_it_does_not_use() -> None:
    """The original's Euler discards one draw a step, which moves every later draw."""
    sampling = SamplingConfig(solver="euler", num_steps=3, noise="upstream_random")
    solver = make_solver(sampling, ScheduleConfig())
    source = make_noise_source(sampling, 5)
    source.initial(SHAPE)
    assert all(source.during(solver, step, SHAPE) is None for step in range(3))
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        torch.randn(SHAPE, generator=generator)
    assert torch.equal(source.initial(SHAPE), torch.randn(SHAPE, generator=generator))


def test_share_of_own_noise() -> None:
    """With ``w_ind_noise`` w, two frames of a clip correlate by 1 - w."""
    sampling = dataclasses.replace(SamplingConfig(), w_ind_noise=0.25)
    noise = make_noise_source(sampling, 1).initial((1, 4, 2, 64, 64))[0]
    correlation = (noise[:, 0] * noise[:, 1]).mean().item()
    assert correlation == pytest.approx(0.75, abs=0.03)


def test_frames_can_be_drawn_one_by_one() -> None:
    """Any frames in any order: the same noise as in a draw of the whole clip."""
    sampling = SamplingConfig(solver="euler_ancestral", num_steps=4)
    solver = make_solver(sampling, ScheduleConfig())
    source = make_noise_source(sampling, 7, first_frame=1)
    frames = [4, 0, 3]
    shape = (SHAPE[0], SHAPE[1], len(frames), *SHAPE[3:])
    assert torch.equal(source.initial(shape, frames), source.initial(SHAPE)[:, :, frames])
    some, whole = source.during(solver, 2, shape, frames), source.during(solver, 2, SHAPE)
    assert torch.equal(some, whole[:, :, frames])
    with pytest.raises(ShapeError, match="noise for 3 frames"):
        source.initial(SHAPE, frames)


@pytest.mark.parametrize("solver_name", ["euler", "ddim", "lcm"])
def test_upstream_noise_is_drawn_for_all_frames_together(solver_name: str) -> None:
    """Where the original draws, single frames are refused; elsewhere nothing needs to wait."""
    sampling = SamplingConfig(solver=solver_name, num_steps=3, noise="upstream_random")
    solver = make_solver(sampling, ScheduleConfig())
    source = make_noise_source(sampling, 7)
    counter = make_noise_source(dataclasses.replace(sampling, noise="counter"), 7)
    for step in range(3):
        assert source.draws_whole_steps(solver, step) == solver.upstream_draws(step)
        assert not counter.draws_whole_steps(solver, step)
        if solver.upstream_draws(step):
            with pytest.raises(ConfigError, match="set noise to counter"):
                source.during(solver, step, SHAPE, range(SHAPE[2]))
        else:
            assert source.during(solver, step, SHAPE, range(SHAPE[2])) is None
