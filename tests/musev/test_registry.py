"""Profiles: found by name, near misses are suggested, each one is a valid setting of its own."""

from __future__ import annotations

import pytest

from musev.denoise.solvers import make_solver
from musev.errors import ConfigError
from musev.models.bundle import load_bundle
from musev.registry import PROFILES, get_profile


def test_found_by_name() -> None:
    for name, profile in PROFILES.items():
        assert get_profile(name) is profile
        assert profile.name == name


def test_a_wrong_name_lists_all_and_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no profile 'minni'") as caught:
        get_profile("minni")
    assert all(name in str(caught.value) for name in PROFILES)
    assert "Did you mean 'mini'?" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        get_profile("zzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", PROFILES)
def test_default_sizes_fit_the_profiles_own_rules(name: str) -> None:
    profile = PROFILES[name]
    assert profile.width % profile.size_multiple == 0
    assert profile.height % profile.size_multiple == 0
    assert profile.width % 2 == profile.height % 2 == 0


def test_upstream_profile_is_the_originals_sampling() -> None:
    """ALGORITHM.md 2.1: 12 frames a window, 4 shared, guidance 3.5, noise common by half."""
    sampling = PROFILES["upstream"].sampling
    assert (sampling.windows.num_frames, sampling.windows.overlap) == (12, 4)
    assert sampling.windows.layout == "upstream"
    assert sampling.noise == "upstream_video_fusion"
    assert sampling.guidance.scale == 3.5


def test_no_profile_is_untrained() -> None:
    assert [name for name, p in PROFILES.items() if p.weights.random_seed is not None] == []


def test_the_weights_of_mini_ship_with_the_package() -> None:
    """Every part of the architecture, in the diffusion that its profile's solver can start from."""
    bundle = load_bundle(get_profile("mini").weights)
    assert bundle.takes_references
    assert bundle.takes_image_prompts
    assert set(bundle.controlnets) == {"openpose"}
    assert bundle.unet.config.layer_norm_eps == 1e-5
    assert bundle.schedule.prediction_type == "v_prediction"
    make_solver(get_profile("mini").sampling, bundle.schedule)
