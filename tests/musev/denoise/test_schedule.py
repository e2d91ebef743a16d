"""Noise scales: tables equal the original's, spacings by hand, and what every table keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musev.config import ScheduleConfig
from musev.denoise.schedule import (
    consistency_timesteps,
    float_timesteps,
    integer_timesteps,
    karras_sigmas,
    log_snr_timesteps,
    make_schedule,
    timesteps_of_sigmas,
)
from musev.errors import ConfigError
from tests.goldens import model_case, model_cases

SD15 = ScheduleConfig()
SPACINGS = st.sampled_from(["leading", "trailing", "linspace"])


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("scheduler"))
def test_tables_equal_the_original(name: str) -> None:
    case, _, io = model_case(name)
    init = case["call"]["init"]
    config = ScheduleConfig(
        beta_start=init["beta_start"],
        beta_end=init["beta_end"],
        beta_schedule=init["beta_schedule"],
        rescale_betas_zero_snr=init.get("rescale_betas_zero_snr", False),
    )
    found = torch.tensor(make_schedule(config).alphas_cumprod, dtype=torch.float32)
    assert torch.equal(found, io["out.alphas_cumprod"])


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_signal_falls_from_nearly_all_to_nearly_nothing(beta_schedule: str, zero_snr: bool) -> None:
    config = ScheduleConfig(beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr)
    schedule = make_schedule(config)
    shares = np.array(schedule.alphas_cumprod)
    assert (np.diff(shares) < 0).all()
    assert shares[0] == pytest.approx(1 - 0.00085, abs=1e-6)
    assert (shares[-1] == 0) == zero_snr
    if zero_snr:
        with pytest.raises(ConfigError, match="use solver ddim"):
            _ = schedule.sigmas
    else:
        assert (np.diff(schedule.sigmas) > 0).all()
    assert make_schedule(config) is schedule
    alpha, sigma = schedule.signal(500)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    assert alpha**2 == pytest.approx(shares[500])


def test_zero_snr_keeps_the_first_share_and_scales_roots_linearly() -> None:
    """arXiv 2305.08891, algorithm 1: roots of the shares are shifted and stretched."""
    plain = np.sqrt(make_schedule(SD15).alphas_cumprod)
    rescaled = np.sqrt(make_schedule(ScheduleConfig(rescale_betas_zero_snr=True)).alphas_cumprod)
    expected = (plain - plain[-1]) * plain[0] / (plain[0] - plain[-1])
    np.testing.assert_allclose(rescaled, expected, atol=2e-4)


def test_spacings_by_hand() -> None:
    def spaced(spacing: str, offset: int = 0) -> tuple[int, ...]:
        return integer_timesteps(
            ScheduleConfig(timestep_spacing=spacing, steps_offset=offset), num_steps=4
        )

    assert spaced("leading") == (750, 500, 250, 0)
    assert spaced("leading", offset=1) == (751, 501, 251, 1)
    assert spaced("trailing", offset=1) == (999, 749, 499, 249)
    assert spaced("linspace", offset=1) == (999, 666, 333, 0)
    linspace = ScheduleConfig(timestep_spacing="linspace")
    assert float_timesteps(linspace, 5) == (999.0, 749.25, 499.5, 249.75, 0.0)
    assert float_timesteps(SD15, 2) == (501.0, 1.0)
    assert consistency_timesteps(1000, 4, original_steps=50) == (999, 759, 499, 259)
    assert log_snr_timesteps(make_schedule(SD15), 4, karras=False) == (999, 749, 500, 250)
    assert log_snr_timesteps(make_schedule(SD15), 4, karras=True) == (999, 687, 146, 0)


@settings(max_examples=80, deadline=None)
@given(SPACINGS, st.integers(0, 1), st.integers(1, 1000))
def test_timesteps_fall_within_the_range(spacing: str, offset: int, num_steps: int) -> None:
    config = ScheduleConfig(timestep_spacing=spacing, steps_offset=offset)
    for timesteps in (integer_timesteps(config, num_steps), float_timesteps(config, num_steps)):
        assert len(timesteps) == num_steps
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999
        assert list(timesteps) == sorted(timesteps, reverse=True)


def test_trailing_timesteps_are_as_many_as_asked_for() -> None:
    """The rounded stride gives some counts (121 is one) a value too many in the original."""
    config = ScheduleConfig(timestep_spacing="trailing")
    for num_steps in range(1, 1001):
        timesteps = integer_timesteps(config, num_steps)
        assert len(timesteps) == num_steps
        assert timesteps[-1] >= 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400))
def test_karras_timesteps_drop_repeats_only(num_steps: int) -> None:
    timesteps = log_snr_timesteps(make_schedule(SD15), num_steps, karras=True)
    assert list(timesteps) == sorted(set(timesteps), reverse=True)
    assert len(timesteps) <= num_steps
    assert timesteps[0] == 999
    assert num_steps == 1 or timesteps[-1] == 0


def test_karras_sigmas_are_even_in_their_seventh_root() -> None:
    sigmas = karras_sigmas(0.03, 14.6, 9)
    assert sigmas[0] == pytest.approx(14.6)
    assert sigmas[-1] == pytest.approx(0.03)
    np.testing.assert_allclose(np.diff(sigmas ** (1 / 7)), np.diff(sigmas ** (1 / 7))[0])


def test_timesteps_of_sigmas_invert_the_table() -> None:
    table = make_schedule(SD15).sigmas
    np.testing.assert_allclose(timesteps_of_sigmas(table, table), np.arange(1000), atol=2e-5)
    between = np.sqrt(table[10] * table[11])
    assert timesteps_of_sigmas(np.array([between]), table)[0] == pytest.approx(10.5, abs=1e-3)
    assert timesteps_of_sigmas(np.array([1e-30, 1e9]), table).tolist() == [0.0, 999.0]


def test_impossible_numbers_of_steps_are_refused() -> None:
    schedule = make_schedule(SD15)
    for steps in (0, 1001):
        with pytest.raises(ConfigError, match=r"steps must be in 1..1000"):
            integer_timesteps(SD15, steps)
        with pytest.raises(ConfigError, match=r"steps must be in 1..1000"):
            log_snr_timesteps(schedule, steps, karras=False)
    with pytest.raises(ConfigError, match="at most 50, got 51"):
        consistency_timesteps(1000, 51, original_steps=50)
