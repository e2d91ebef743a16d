"""The loop against closed forms: no network, only arithmetic that can be done by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from musev.config import GuidanceConfig, SamplingConfig, ScheduleConfig, WindowConfig
from musev.denoise.loop import denoise_clip
from musev.denoise.solvers import SolverState, make_solver
from musev.denoise.sources import make_noise_source

SHAPE = (1, 4, 20, 3, 5)


def sampling_with(**changes: object) -> SamplingConfig:
    """Guidance off, eight-frame windows."""
    plain = SamplingConfig(
        solver="ddim",
        num_steps=5,
        guidance=GuidanceConfig(scale=1.0, schedule="constant"),
        windows=WindowConfig(num_frames=8, overlap=3),
    )
    return dataclasses.replace(plain, **changes)


def run(sampling: SamplingConfig, denoiser: object, seed: int = 1) -> torch.Tensor:
    """Denoise a clip of :data:`SHAPE` from its counter noise."""
    solver = make_solver(sampling, ScheduleConfig())
    source = make_noise_source(sampling, seed)
    start = source.initial(SHAPE) * solver.initial_scale
    return denoise_clip(denoiser, start, solver=solver, sampling=sampling, noise=source)


def frame_wise(noisy: torch.Tensor, timestep: float, window: object) -> torch.Tensor:
    """A denoiser that treats every frame alone, so windows cannot matter."""
    return torch.tanh(noisy) + 1e-4 * timestep


@pytest.mark.parametrize("layout", ["musev", "upstream", "rotating"])
@pytest.mark.parametrize("blend", ["flat", "linear", "pyramid", "gaussian"])
def test_windows_do_not_matter_to_a_denoiser_that_sees_single_frames(
    layout: str, blend: str
) -> None:
    """Averaging equal estimates is the estimate: any layout and blend equals one big window."""
    whole = run(sampling_with(windows=WindowConfig(num_frames=20, overlap=0)), frame_wise)
    windows = WindowConfig(num_frames=8, overlap=3, layout=layout, blend=blend)
    torch.testing.assert_close(
        run(sampling_with(windows=windows), frame_wise), whole, rtol=0, atol=2e-5
    )


def test_overlapping_windows_are_averaged_before_the_step() -> None:
    """A denoiser that answers its window's first frame number: the overlap gets the mean."""
    seen: list[torch.Tensor] = []

    def numbered(noisy: torch.Tensor, timestep: float, window: tuple[int, ...]) -> torch.Tensor:
        return torch.full_like(noisy, float(window[0]))

    sampling = sampling_with(num_steps=1, windows=WindowConfig(num_frames=12, overlap=4))
    solver = make_solver(sampling, ScheduleConfig())
    source = make_noise_source(sampling, 0)
    start = source.initial(SHAPE)
    denoise_clip(
        numbered,
        start,
        solver=solver,
        sampling=sampling,
        noise=source,
        on_step=lambda _step, latents: seen.append(latents),
    )
    # 20 frames, windows 0..11 and 8..19, so frames 8..11 get the mean of 0 and 8.
    for frame, estimate in ((0, 0.0), (9, 4.0), (15, 8.0)):
        state = SolverState(start[:, :, frame : frame + 1])
        wanted = solver.advance(state, torch.full_like(state.latents, estimate), 0, None).latents
        torch.testing.assert_close(seen[0][:, :, frame : frame + 1], wanted, rtol=0, atol=1e-6)


def test_guidance_mixes_the_two_halves_by_the_schedule() -> None:
    """Guided by w, halves u and c act as one estimate u + w (c - u)."""

    def halves(noisy: torch.Tensor, timestep: float, window: object) -> torch.Tensor:
        return torch.cat([0.5 * noisy, 0.75 * noisy])

    def mixed(noisy: torch.Tensor, timestep: float, window: object) -> torch.Tensor:
        return 0.5 * noisy + 3.0 * (0.75 * noisy - 0.5 * noisy)

    guided = sampling_with(guidance=GuidanceConfig(scale=3.0, schedule="constant"))
    torch.testing.assert_close(run(guided, halves), run(sampling_with(), mixed), rtol=0, atol=1e-5)


def test_the_start_of_a_clip_does_not_depend_on_its_length() -> None:
    """Counter noise: the same frames start equal in a longer clip, bit for bit."""
    sampling = sampling_with()
    short = make_noise_source(sampling, 3).initial((1, 4, 6, 3, 5))
    long = make_noise_source(sampling, 3).initial((1, 4, 60, 3, 5))
    assert torch.equal(short, long[:, :, :6])


def test_input_is_not_changed() -> None:
    """The caller's initial latents survive."""
    sampling = sampling_with()
    solver = make_solver(sampling, ScheduleConfig())
    source = make_noise_source(sampling, 1)
    start = source.initial(SHAPE)
    kept = start.clone()
    denoise_clip(frame_wise, start, solver=solver, sampling=sampling, noise=source)
    assert torch.equal(start, kept)
