"""The meanings of a network's estimate agree with each other."""

from __future__ import annotations

import pytest
import torch

from musev.denoise.solver_base import (
    SolverState,
    check_noise,
    check_signal,
    predict_clean,
    predict_noise,
)
from musev.errors import ConfigError

ALPHA, SIGMA = 0.8, 0.6


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_estimate_gives_back_signal_and_noise(kind: str) -> None:
    clean, noise = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    latents = ALPHA * clean + SIGMA * noise
    estimate = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": ALPHA * noise - SIGMA * clean,
    }[kind]
    found = predict_clean(kind, estimate, latents, ALPHA, SIGMA)
    torch.testing.assert_close(found, clean, atol=2e-6, rtol=0)
    found = predict_noise(kind, estimate, latents, ALPHA, SIGMA)
    torch.testing.assert_close(found, noise, atol=2e-6, rtol=0)


def test_frames_are_taken_out_of_latents_and_history_alike() -> None:
    latents = torch.arange(24.0).view(1, 2, 4, 3, 1)
    state = SolverState(latents, (latents + 100, latents + 200))
    part = state.select_frames([3, 1])
    assert torch.equal(part.latents, latents[:, :, [3, 1]])
    assert torch.equal(part.history[1], part.latents + 200)
    assert torch.equal(state.select_frames(slice(1, 3)).latents, latents[:, :, 1:3])
    assert torch.equal(state.select_frames([0], dim=1).history[0], latents[:, :1] + 100)


def test_noise_prediction_needs_some_signal() -> None:
    check_signal("v_prediction", (0.0, 0.5))
    check_signal("epsilon", (0.1, 0.5))
    with pytest.raises(ConfigError, match="zero signal"):
        check_signal("epsilon", (0.5, 0.0))


def test_missing_noise_names_the_step() -> None:
    assert check_noise(torch.zeros(1, dtype=torch.float16), 3).dtype == torch.float32
    with pytest.raises(ValueError, match="step 3 needs noise"):
        check_noise(None, 3)
