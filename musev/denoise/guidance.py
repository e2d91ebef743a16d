"""Guidance: how far an estimate is moved from the unconditional one, and how that changes."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from musev.config import GuidanceConfig, GuidanceSchedule


def guidance_scales(config: GuidanceConfig, num_steps: int) -> tuple[float, ...]:
    """Compute the guidance scale of every step.

    Args:
        config: Start, end and course. Without an end, or with ``constant``, the start holds.
        num_steps: Number of steps.

    Returns:
        One scale a step.
    """
    return scale_course(config.scale, config.scale_end, num_steps, config.schedule)[:num_steps]


def scale_course(
    start: float, end: float | None, num_steps: int, schedule: GuidanceSchedule
) -> tuple[float, ...]:
    """List guidance scales exactly as the original does.

    Args:
        start: Scale of the first step.
        end: Scale of the last step; None for no change.
        num_steps: Number of steps.
        schedule: ``linear`` reaches the end at the last step; ``two_stage`` switches half way;
            ``three_stage`` has a middle third at the rounded-down mean; ``fix_two_stage`` switches
            after three steps.

    Returns:
        The scales. ``fix_two_stage`` gives three even for fewer steps.

    Source:
        Upstream ``generate_parameters_with_timesteps``.
    """
    if end is None or end == start or schedule == "constant":
        return (float(start),) * num_steps
    if schedule == "linear":
        return tuple(np.linspace(start, end, num_steps).tolist())
    if schedule == "two_stage":
        stages = [(start, num_steps // 2)]
    elif schedule == "three_stage":
        third = num_steps // 3
        stages = [(start, third), ((start + end) // 2, third)]
    else:
        stages = [(start, 3)]
    scales = [float(scale) for scale, length in stages for _ in range(length)]
    return (*scales, *[float(end)] * (num_steps - len(scales)))


def guide(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """Move from the unconditional estimate past the conditional one (arXiv 2207.12598)."""
    return uncond + scale * (cond - uncond)
