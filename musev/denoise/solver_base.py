"""What all solvers share: the state they move and the meanings of a network's estimate.

Axes here: latents are ``_BCTHW`` (B clip, C channel, T frame, H W latent rows and columns). Solvers
only do elementwise float32 arithmetic with numbers that are the same for every element, so any
subset of clips or frames can be moved alone and gets the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from musev.config import PredictionType
from musev.denoise.schedule import split_variance
from musev.errors import ConfigError


@dataclass(frozen=True)
class SolverState:
    """Latents on their way, and what a multistep solver remembers of earlier steps.

    ``latents``: float32. ``history``: tensors of the same shape, newest first; empty at the start.
    """

    latents: Tensor
    history: tuple[Tensor, ...] = ()

    def select_frames(self, frames: slice | list[int], dim: int = 2) -> SolverState:
        """Return the state of some frames alone; ``dim`` is the frame axis."""
        index: list[slice | list[int]] = [slice(None)] * self.latents.dim()
        index[dim] = frames
        key = tuple(index)
        return SolverState(self.latents[key], tuple(past[key] for past in self.history))


class Solver(ABC):
    """The rule that moves latents from one noise scale to the next.

    A solver is a frozen value: nothing changes in it while it is used, its arguments are never
    written to, and it may be shared by any number of clips. ``timesteps`` holds what the network is
    told, one entry a step; ``initial_scale`` is the standard deviation the initial noise needs.
    """

    timesteps: tuple[float, ...]
    initial_scale: float

    @property
    def num_steps(self) -> int:
        """Number of steps; Karras timesteps may give fewer than were asked for."""
        return len(self.timesteps)

    def scale_input(self, latents: Tensor, step: int) -> Tensor:
        """Scale latents to what the network expects at ``step``; float32."""
        return to_float32(latents)

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """Mix clean latents and unit noise to the noise scale at the start of ``step``."""

    @abstractmethod
    def needs_noise(self, step: int) -> bool:
        """Whether the result of ``step`` depends on fresh noise."""

    @abstractmethod
    def upstream_draws(self, step: int) -> bool:
        """Whether the original takes noise from its generator at ``step``, needed or not."""

    @abstractmethod
    def advance(
        self, state: SolverState, estimate: Tensor, step: int, noise: Tensor | None = None
    ) -> SolverState:
        """Move a state over one step.

        Args:
            state: All its frames stand at the start of ``step``.
            estimate: The network's raw output for them; any float dtype.
            step: Position in ``timesteps``.
            noise: Unit noise like the latents; must be given where ``needs_noise(step)``.

        Returns:
            A new state at the start of ``step + 1``.
        """


class VariancePreserving(Solver):
    """A solver whose latents keep unit variance: ``noisy = alpha * clean + sigma * noise``.

    ``alphas_cumprod`` holds the share of signal at the start of each step.
    """

    alphas_cumprod: tuple[float, ...]

    def add_noise(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """Mix clean latents and unit noise to the noise scale at the start of ``step``."""
        alpha, sigma = split_variance(self.alphas_cumprod[step])
        return alpha * to_float32(clean) + sigma * to_float32(noise)


def predict_clean(
    kind: PredictionType, estimate: Tensor, latents: Tensor, alpha: float, sigma: float
) -> Tensor:
    """Turn a network's output into the clean latents it implies.

    Args:
        kind: What the output means: the noise, the clean sample, or the velocity
            ``alpha * noise - sigma * clean`` (arXiv 2202.00512).
        estimate: The output, float32.
        latents: ``alpha * clean + sigma * noise``, float32.
        alpha: Scale of the signal.
        sigma: Scale of the noise.

    Returns:
        The clean latents.
    """
    if kind == "epsilon":
        return (latents - sigma * estimate) / alpha
    if kind == "sample":
        return estimate
    return alpha * latents - sigma * estimate


def predict_noise(
    kind: PredictionType, estimate: Tensor, latents: Tensor, alpha: float, sigma: float
) -> Tensor:
    """Turn a network's output into the noise it implies; arguments as :func:`predict_clean`."""
    if kind == "epsilon":
        return estimate
    if kind == "sample":
        return (latents - alpha * estimate) / sigma
    return alpha * estimate + sigma * latents


def check_signal(kind: PredictionType, alphas_cumprod: tuple[float, ...]) -> None:
    """Refuse noise prediction where nothing of the signal is left to recover.

    Args:
        kind: What the network's output means.
        alphas_cumprod: Share of signal at each visited timestep.

    Raises:
        ConfigError: If the clean latents would be divided by zero.
    """
    if kind == "epsilon" and min(alphas_cumprod) <= 0:
        raise ConfigError(
            "a network that predicts noise cannot start from zero signal; use prediction_type "
            "v_prediction, or switch rescale_betas_zero_snr off"
        )


def check_noise(noise: Tensor | None, step: int) -> Tensor:
    """Return the noise as float32.

    Args:
        noise: What the caller gave.
        step: For the message.

    Returns:
        The noise.

    Raises:
        ValueError: If there is none.
    """
    if noise is None:
        raise ValueError(f"step {step} needs noise; ask needs_noise(step) first")
    return to_float32(noise)


def to_float32(tensor: Tensor) -> Tensor:
    """Convert to float32: steps are taken in float32 whatever the network computes in."""
    return tensor.to(torch.float32)
