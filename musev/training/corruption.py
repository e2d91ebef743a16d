"""What chance adds to a batch: timesteps, noise, and conditions that are left out.

Everything random of a training step is drawn here, from seeds, and becomes part of the batch: the
step itself is then a function of the batch alone.
"""

# Axes here: B clip, C channel, T frame, H W latent rows and columns, L token.
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from musev.errors import ConfigError
from musev.training.optimizer import Batch


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """Probabilities of leaving a condition out, and the kind of noise.

    Text and image prompt are left out a clip at a time (by the empty prompt's tokens, by the
    projection of a zero embedding); everything else a batch at a time, because the network without
    it is another computation and not one with zeros.
    """

    drop_text: float = 0.1
    drop_text_with_reference: float = 0.5
    """Instead, where only a reference shows the person: else the text says it all and the picture
    is ignored. A conditioning frame shows it too; then only the text tells what is done."""
    drop_image_prompt: float = 0.1
    drop_reference: float = 0.2
    drop_pictures: float = 0.0
    """Reference and image prompt together: what a request of text alone is."""
    drop_control: float = 0.0
    no_condition_frame: float = 0.2
    first_condition_frame: float = 0.5
    """Otherwise the clean frame is any of the clip."""
    short_window: float = 0.3
    """Share of video batches cut to 2 frames or more: short windows are used at the ends."""
    w_ind_noise: float = 0.5
    """Share of a frame's noise that is its own, as at inference."""
    timestep_spread: float | None = None
    """Draw timesteps from a logit-normal distribution of this deviation (arXiv 2403.03206, section
    3.1), so that most lie where the picture is decided; None draws all alike. 1 is usual."""
    timestep_mean: float = 0.0
    """Of its logits: 0 has its middle at half of the timesteps, below 0 at less noise."""

    def __post_init__(self) -> None:
        others = {"timestep_spread", "timestep_mean"}
        for name, value in vars(self).items():
            if name not in others and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {value}")
        if self.timestep_spread is not None and self.timestep_spread <= 0:
            raise ConfigError(f"timestep_spread must be above 0, got {self.timestep_spread}")
        if self.timestep_spread is None and self.timestep_mean:
            raise ConfigError(
                f"timestep_mean={self.timestep_mean} says nothing while timesteps are drawn all "
                "alike; give timestep_spread too"
            )
        if self.no_condition_frame + self.first_condition_frame > 1:
            raise ConfigError("no_condition_frame and first_condition_frame add up to more than 1")


def corrupt(
    batch: Batch,
    config: CorruptionConfig,
    *,
    seed: int,
    step_seed: int,
    empty_ids_L: Tensor,
    num_timesteps: int = 1000,
) -> Batch:
    """Draw everything random of one batch.

    What decides how much there is to compute (dropped entries, the window's length, whether there
    is a conditioning frame) comes from ``step_seed``: a step's workers share it, so that none waits
    for one with a longer batch.

    Args:
        batch: ``latents_BCTHW`` and ``ids_BL``; optional ``person_BTHW``, ``reference_BCTHW``,
            ``image_prompt_BCYX``, ``control_BTCYX``.
        config: Probabilities.
        seed: Of this batch: noise, timesteps, clips without text or image prompt.
        step_seed: Of the step; :func:`dropped_entries` tells its drops beforehand.
        empty_ids_L: Tokens of the empty prompt.
        num_timesteps: Of the diffusion.

    Returns:
        A new batch with ``noise_BCTHW``, ``timesteps_B``, ``condition_index`` for videos with a
        conditioning frame, ``keep_image_B`` with an image prompt; dropped entries are missing.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(step_seed)
    gone = _draw_dropped(config, shared)
    found = {name: value for name, value in batch.items() if name not in gone}
    num_frames = batch["latents_BCTHW"].shape[2]
    if num_frames > 2 and torch.rand((), generator=shared) < config.short_window:
        found = _cut_window(found, num_frames, shared)
    latents = found["latents_BCTHW"]
    num_clips, channels, num_frames, height, width = latents.shape
    frames = torch.randn((num_clips, channels, num_frames, height, width), generator=generator)
    if num_frames > 1:
        common = torch.randn((num_clips, channels, 1, height, width), generator=generator)
        own = config.w_ind_noise
        frames = math.sqrt(1 - own) * common + math.sqrt(own) * frames
        index = _condition_index(config, num_frames, shared)
        if index is not None:
            found["condition_index"] = index
    found["noise_BCTHW"] = frames
    found["timesteps_B"] = _draw_timesteps(config, num_clips, num_timesteps, generator)
    shown = "reference_BCTHW" in found or "image_prompt_BCYX" in found
    only_there = shown and "condition_index" not in found
    drop_text = config.drop_text_with_reference if only_there else config.drop_text
    drop_text_B = torch.rand(num_clips, generator=generator) < drop_text
    found["ids_BL"] = torch.where(drop_text_B[:, None], empty_ids_L, batch["ids_BL"])
    if "image_prompt_BCYX" in found:
        keep_B = torch.rand(num_clips, generator=generator) >= config.drop_image_prompt
        found["keep_image_B"] = keep_B
    return found


def dropped_entries(config: CorruptionConfig, *, step_seed: int) -> frozenset[str]:
    """Which entries of a whole batch :func:`corrupt` will leave out, so that nobody makes them.

    Args:
        config: Probabilities.
        step_seed: That of the step.

    Returns:
        Names among ``reference_BCTHW``, ``image_prompt_BCYX`` and ``control_BTCYX``.
    """
    return _draw_dropped(config, torch.Generator().manual_seed(step_seed))


def _draw_dropped(config: CorruptionConfig, generator: torch.Generator) -> frozenset[str]:
    # Always as many draws, whatever they say: what is drawn after them does not move.
    drops = (
        (("reference_BCTHW",), config.drop_reference),
        (("control_BTCYX",), config.drop_control),
        (("reference_BCTHW", "image_prompt_BCYX"), config.drop_pictures),
    )
    draws = [float(torch.rand((), generator=generator)) for _ in drops]
    return frozenset(
        name
        for draw, (names, probability) in zip(draws, drops, strict=True)
        if draw < probability
        for name in names
    )


def _draw_timesteps(
    config: CorruptionConfig, num_clips: int, num_timesteps: int, generator: torch.Generator
) -> Tensor:
    if config.timestep_spread is None:
        return torch.randint(num_timesteps, (num_clips,), generator=generator)
    logits_B = torch.randn(num_clips, generator=generator) * config.timestep_spread
    share_B = torch.sigmoid(logits_B + config.timestep_mean)
    return (share_B * num_timesteps).long().clamp(max=num_timesteps - 1)


def _condition_index(
    config: CorruptionConfig, num_frames: int, generator: torch.Generator
) -> Tensor | None:
    draw = float(torch.rand((), generator=generator))
    place = int(torch.randint(num_frames, (), generator=generator))
    if draw < config.no_condition_frame:
        return None
    first = draw < config.no_condition_frame + config.first_condition_frame
    return torch.tensor([0 if first else place])


def _cut_window(batch: Batch, num_frames: int, generator: torch.Generator) -> Batch:
    length = int(torch.randint(2, num_frames, (), generator=generator))
    start = int(torch.randint(num_frames - length + 1, (), generator=generator))
    axes = {"latents_BCTHW": 2, "person_BTHW": 1, "control_BTCYX": 1}
    return {
        name: value.narrow(axes[name], start, length) if name in axes else value
        for name, value in batch.items()
    }
