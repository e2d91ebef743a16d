"""Timesteps, sigmas and cumulative alphas: which noise scales a solver visits.

Tables are computed in the precision of the released models (float32 products, float64
interpolation), since a solver can only repeat their pictures if it visits the same numbers. What
happens between two entries belongs to the solvers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

from musev.config import ScheduleConfig
from musev.errors import ConfigError

KARRAS_RHO = 7.0  # arXiv 2206.00364, table 1


@dataclass(frozen=True)
class Schedule:
    """The noise scales of a trained diffusion, one entry for each training timestep.

    ``alphas_cumprod``: share of the clean signal's variance in the noisy latents, falling.
    """

    config: ScheduleConfig
    alphas_cumprod: tuple[float, ...]

    @functools.cached_property
    def sigmas(self) -> np.ndarray:
        """Sigma of each training timestep, where ``noisy = clean + sigma * noise``.

        Returns:
            Sigmas as float32, rising.

        Raises:
            ConfigError: If the last timestep keeps no signal, so that its sigma is infinite.
        """
        alphas = np.array(self.alphas_cumprod, dtype=np.float32)
        if not alphas.all():
            raise ConfigError(
                "rescale_betas_zero_snr makes the largest sigma infinite, which this solver cannot "
                "start from; use solver ddim"
            )
        sigmas = np.sqrt((1 - alphas) / alphas)
        sigmas.setflags(write=False)
        return sigmas

    def signal(self, timestep: int) -> tuple[float, float]:
        """Return ``(alpha, sigma)`` with ``noisy = alpha * clean + sigma * noise``."""
        return split_variance(self.alphas_cumprod[timestep])


def split_variance(alpha_cumprod: float) -> tuple[float, float]:
    """Return the scales of signal and noise for a share of signal variance."""
    return math.sqrt(alpha_cumprod), math.sqrt(1.0 - alpha_cumprod)


@functools.lru_cache(maxsize=32)
def make_schedule(config: ScheduleConfig) -> Schedule:
    """Compute the table of cumulative alphas of a diffusion.

    Args:
        config: The diffusion the network was trained on.

    Returns:
        The schedule; equal configs give the same object.

    Source:
        Betas as in diffusers ``scaled_linear`` and ``linear``; zero terminal SNR: arXiv 2305.08891,
        algorithm 1.
    """
    steps, first, last = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "scaled_linear":
        betas_S = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    else:
        betas_S = torch.linspace(first, last, steps, dtype=torch.float32)
    if config.rescale_betas_zero_snr:
        betas_S = _zero_terminal_snr(betas_S)
    return Schedule(config, tuple(torch.cumprod(1.0 - betas_S, dim=0).tolist()))


def _zero_terminal_snr(betas_S: torch.Tensor) -> torch.Tensor:
    roots_S = torch.cumprod(1.0 - betas_S, dim=0).sqrt()
    first, last = roots_S[0].clone(), roots_S[-1].clone()
    roots_S = (roots_S - last) * (first / (first - last))
    alphas_cumprod_S = roots_S**2
    alphas_S = torch.cat([alphas_cumprod_S[:1], alphas_cumprod_S[1:] / alphas_cumprod_S[:-1]])
    return 1.0 - alphas_S


def integer_timesteps(config: ScheduleConfig, num_steps: int) -> tuple[int, ...]:
    """Space ``num_steps`` whole timesteps as DDIM and DDPM do, largest first.

    Args:
        config: Gives the range, the spacing rule and the offset (leading spacing only).
        num_steps: Number of steps, at most the number of training timesteps.

    Returns:
        One timestep a step.
    """
    total = config.num_train_timesteps
    _check_steps(num_steps, total)
    if config.timestep_spacing == "linspace":
        values = np.linspace(0, total - 1, num_steps).round()[::-1]
    elif config.timestep_spacing == "leading":
        values = np.arange(num_steps)[::-1] * (total // num_steps) + config.steps_offset
    else:
        # Cut: rounding of the stride can give one value too many (-1, for 121 steps, say).
        values = np.round(np.arange(total, 0, -total / num_steps))[:num_steps] - 1
    return _whole(np.minimum(values, total - 1))


def float_timesteps(config: ScheduleConfig, num_steps: int) -> tuple[float, ...]:
    """Space ``num_steps`` timesteps as Euler does: like DDIM, but ``linspace`` is not rounded.

    Args:
        config: Gives the range, the spacing rule and the offset (leading spacing only).
        num_steps: Number of steps, at most the number of training timesteps.

    Returns:
        One timestep a step, each exactly representable in float32.
    """
    total = config.num_train_timesteps
    if config.timestep_spacing != "linspace":
        return tuple(float(t) for t in integer_timesteps(config, num_steps))
    _check_steps(num_steps, total)
    return tuple(np.linspace(0, total - 1, num_steps, dtype=np.float32)[::-1].tolist())


def consistency_timesteps(total: int, num_steps: int, *, original_steps: int) -> tuple[int, ...]:
    """Pick ``num_steps`` timesteps from the coarse grid a consistency model was distilled on.

    Args:
        total: Number of training timesteps.
        num_steps: Number of steps, at most ``original_steps``.
        original_steps: Size of the grid used in distillation.

    Returns:
        One timestep a step, largest first.

    Raises:
        ConfigError: If more steps are asked for than the grid has.
    """
    if num_steps > original_steps:
        raise ConfigError(
            f"the lcm solver was distilled on {original_steps} timesteps, so steps must be at most "
            f"{original_steps}, got {num_steps}"
        )
    grid = (np.arange(1, original_steps + 1) * (total // original_steps) - 1)[::-1]
    picked = np.floor(np.linspace(0, original_steps, num_steps, endpoint=False)).astype(int)
    return _whole(grid[picked])


def log_snr_timesteps(schedule: Schedule, num_steps: int, *, karras: bool) -> tuple[int, ...]:
    """Space timesteps as the DPM-Solver does; its steps end at timestep 0.

    Args:
        schedule: The diffusion's noise scales.
        num_steps: Number of steps.
        karras: Space the sigmas by Karras' rule and round each to its timestep; neighbours that
            round to the same timestep count once, so there may be fewer steps than asked for.

    Returns:
        One timestep a step, largest first.
    """
    total = schedule.config.num_train_timesteps
    _check_steps(num_steps, total)
    if not karras:
        return _whole(np.linspace(0, total - 1, num_steps + 1).round()[::-1][:-1])
    table = schedule.sigmas
    sigmas = karras_sigmas(float(table[0]), float(table[-1]), num_steps)
    return tuple(dict.fromkeys(_whole(timesteps_of_sigmas(sigmas, table).round())))


def karras_sigmas(smallest: float, largest: float, num_steps: int) -> np.ndarray:
    """Space sigmas evenly in their seventh root, largest first (arXiv 2206.00364, equation 5)."""
    ramp = np.linspace(0, 1, num_steps)
    low, high = smallest ** (1 / KARRAS_RHO), largest ** (1 / KARRAS_RHO)
    return (high + ramp * (low - high)) ** KARRAS_RHO


def timesteps_of_sigmas(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Find the fractional timestep of each sigma, linear in the logarithm of the table.

    Args:
        sigmas: Sigmas to look up, all positive.
        table: Sigma of each training timestep, rising.

    Returns:
        Timesteps as float64, clipped to the table's range.
    """
    logs = np.log(table.astype(np.float64))
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), logs, np.arange(len(table)))


def _check_steps(num_steps: int, total: int) -> None:
    if not 1 <= num_steps <= total:
        raise ConfigError(f"steps must be in 1..{total} for this model, got {num_steps}")


def _whole(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
