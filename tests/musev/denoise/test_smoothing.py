"""A shot's beginning leans on the end of the shot before it, a little and only at first."""

from __future__ import annotations

import torch

from musev.config import ShotConfig
from musev.denoise.smoothing import LATENT_STEPS, OLD_ESTIMATES, OLD_LATENTS, ShotSmoother


def value(number: float) -> torch.Tensor:
    """One latent."""
    return torch.full((1, 1, 1, 1), number)


def after_a_shot(config: ShotConfig, *, num_frames: int = 4) -> ShotSmoother:
    """A smoother that has seen a shot whose frame f is 10 f + step."""
    smoother = ShotSmoother(config)
    smoother.begin(num_frames, 4)
    for frame in range(num_frames):
        for step in range(5):
            seen = value(10.0 * frame + step)
            assert torch.equal(smoother.latents(step, frame, seen), seen), "nothing before it"
        for step in range(4):
            smoother.estimate(step, frame, value(10.0 * frame + step))
    smoother.begin(num_frames, 4)
    return smoother


def test_latents_lean_on_the_last_frames_during_the_first_steps() -> None:
    """The first frames on the last ones, in their order."""
    smoother = after_a_shot(ShotConfig(num_frames=4, smoothed_frames=2))
    for frame, old in ((0, 20.0), (1, 30.0)):
        for step in range(LATENT_STEPS + 1):
            found = smoother.latents(step, frame, value(1.0))
            wanted = OLD_LATENTS * (old + step) + (1 - OLD_LATENTS)
            torch.testing.assert_close(found, value(wanted))
        late = smoother.latents(LATENT_STEPS + 1, frame, value(1.0))
        assert torch.equal(late, value(1.0))
    assert torch.equal(smoother.latents(0, 2, value(1.0)), value(1.0)), "only so many frames"


def test_estimates_lean_from_the_second_frame_on_during_half_of_the_steps() -> None:
    """As the original's slices do, frame 0 stays."""
    config = ShotConfig(
        num_frames=4, smoothed_frames=2, smooth_latents=False, smooth_estimates=True
    )
    smoother = after_a_shot(config)
    assert torch.equal(smoother.estimate(0, 0, value(1.0)), value(1.0))
    for frame, old in ((1, 20.0), (2, 30.0)):
        found = smoother.estimate(2, frame, value(1.0))
        torch.testing.assert_close(found, value(OLD_ESTIMATES * (old + 2) + 1 - OLD_ESTIMATES))
        assert torch.equal(smoother.estimate(3, frame, value(1.0)), value(1.0))
    assert torch.equal(smoother.latents(0, 0, value(1.0)), value(1.0)), "latents are left alone"


def test_what_a_mixed_shot_leaves_is_what_it_became() -> None:
    """The next shot leans on the mixture, not on what was there before."""
    smoother = after_a_shot(ShotConfig(num_frames=2, smoothed_frames=2), num_frames=2)
    mixed = smoother.latents(0, 1, value(1.0))
    smoother.begin(2, 4)
    found = smoother.latents(0, 1, value(0.0))
    torch.testing.assert_close(found, OLD_LATENTS * mixed)


def test_without_frames_there_is_nothing_to_do() -> None:
    """The default: shots are not mixed."""
    assert not ShotSmoother(ShotConfig(num_frames=4)).active
    assert ShotSmoother(ShotConfig(num_frames=4, smoothed_frames=1)).active
