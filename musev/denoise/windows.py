"""Plan the windows a clip is denoised in, and blend their estimates back into the clip.

Plans are pure functions of their arguments; nothing here sees a network. Axes here: B clip,
C channel, T frame of the clip, F frame within a window, H W latent rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from musev.config import Blend, Layout, WindowConfig
from musev.denoise.solver_base import to_float32
from musev.errors import ConfigError, ShapeError

Window = tuple[int, ...]
Cover = tuple[tuple[int, int], ...]

GAUSSIAN_WIDTH = 0.25  # standard deviation of the Gaussian blend, as a share of the window


def plan_windows(
    num_frames: int, config: WindowConfig, *, step: int, num_steps: int, seed: int = 0
) -> tuple[Window, ...]:
    """Choose the windows of one step.

    ``musev``, ``upstream`` and ``upstream_uniform`` are the same at every step; ``rotating`` moves
    its borders and ends with ``settle_steps`` steps of ``musev``. A clip no longer than a window is
    one window of its own length (in ``upstream`` it can have a short second one). Windows come
    sorted by their first frame, except ``upstream_uniform`` (the original's order).

    Args:
        num_frames: Frames of the clip.
        config: Size, overlap and layout.
        step: Step the windows are for.
        num_steps: Number of steps.
        seed: Where ``rotating`` begins its sequence of borders; any whole number from 0.

    Returns:
        Frame numbers of each window. Every frame is in at least one.

    Raises:
        ConfigError: If there are no frames or there is no such step.
    """
    if num_frames < 1:
        raise ConfigError(f"a clip needs at least 1 frame, got {num_frames}")
    if not 0 <= step < num_steps:
        raise ConfigError(f"step must be in [0, {num_steps}), got {step}")
    if config.layout == "rotating" and step < num_steps - config.settle_steps:
        return _rotating(num_frames, config.num_frames, ordered_halving(step + seed))
    return _FIXED_LAYOUTS[config.layout](num_frames, config)


def _full_length(num_frames: int, config: WindowConfig) -> tuple[Window, ...]:
    """Whole windows at regular starts; the last one slides back to fit."""
    size, last = config.num_frames, num_frames - config.num_frames
    if last <= 0:
        return (tuple(range(num_frames)),)
    starts = [*range(0, last, size - config.overlap), last]
    return tuple(tuple(range(start, start + size)) for start in starts)


def _rotating(num_frames: int, size: int, fraction: float) -> tuple[Window, ...]:
    """Tiles without overlap, shifted by a fraction of their size; those at the ends slide inwards.

    Only frames within one window of an end can be in two windows, all others are in exactly one.
    There are fewer than ``num_frames / size + 2`` windows, so the work is below
    ``1 + 2 * size / num_frames`` of the least possible.
    """
    last = num_frames - size
    if last <= 0:
        return (tuple(range(num_frames)),)
    # Fractions of successive steps lie in different halves; so do shifts only of an even number.
    shift = int((size - size % 2) * fraction)
    starts = {min(max(start, 0), last) for start in range(shift - size, num_frames, size)}
    return tuple(tuple(range(start, start + size)) for start in sorted(starts))


def _upstream(num_frames: int, config: WindowConfig) -> tuple[Window, ...]:
    """The original's ``uniform_v2``: tails are cut off at the end of the clip."""
    size = config.num_frames
    starts = range(0, num_frames, size - config.overlap)
    return _without_repeated_end(
        [tuple(range(start, min(start + size, num_frames))) for start in starts]
    )


def _upstream_uniform(num_frames: int, config: WindowConfig) -> tuple[Window, ...]:
    """The original's ``uniform``: windows run past the end onto the first frames, also dilated.

    Dilated windows of a short clip can hold a frame twice.
    """
    size = config.num_frames
    if num_frames <= size:
        return (tuple(range(num_frames)),)
    levels = min(config.stride, math.ceil(math.log2(num_frames / size)) + 1)
    windows = []
    for dilation in (2**level for level in range(levels)):
        for start in range(0, num_frames, size * dilation - config.overlap):
            frames = range(start, start + size * dilation, dilation)
            windows.append(tuple(frame % num_frames for frame in frames))
    return _without_repeated_end(windows)


def _without_repeated_end(windows: list[Window]) -> tuple[Window, ...]:
    """Drop the last window if it ends like the one before; earlier such pairs stay, as upstream."""
    repeated = len(windows) > 1 and windows[-1][-1] == windows[-2][-1]
    return tuple(windows[:-1] if repeated else windows)


_FIXED_LAYOUTS: dict[Layout, Callable[[int, WindowConfig], tuple[Window, ...]]] = {
    "musev": _full_length,
    "rotating": _full_length,
    "upstream": _upstream,
    "upstream_uniform": _upstream_uniform,
}


def ordered_halving(number: int) -> float:
    """Map 0, 1, 2, 3 ... to 0, 1/2, 1/4, 3/4 ...: a number's 64 bits mirrored at the point.

    Neighbours always fall into different halves, so a border moved by it never stays.
    """
    return int(f"{number % 2**64:064b}"[::-1], 2) / 2**64


def plan_video_windows(
    num_frames: int, *, size: int, stride: int, sample_rate: int = 1, drop_last: bool = False
) -> tuple[Window, ...]:
    """Cut the frames of a source video into the chunks the original reads it in.

    Args:
        num_frames: Frames of the source.
        size: Frames of a chunk.
        stride: Sampled frames between the starts of two chunks.
        sample_rate: Take every so manieth frame of the source.
        drop_last: Leave out chunks shorter than ``size``.

    Returns:
        Source frame numbers of each chunk.

    Raises:
        ConfigError: If size, stride or sample rate is below 1, where the original never ends.
    """
    for name, value in (("size", size), ("stride", stride), ("sample_rate", sample_rate)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    sampled = tuple(range(0, num_frames, sample_rate))
    chunks = (sampled[start : start + size] for start in range(0, len(sampled), stride))
    return tuple(chunk for chunk in chunks if len(chunk) == size or not drop_last)


def covering_windows(windows: Sequence[Window], num_frames: int) -> tuple[Cover, ...]:
    """Say for each frame which windows hold it, and where.

    Args:
        windows: The plan of one step.
        num_frames: Frames of the clip.

    Returns:
        For each frame its ``(window number, position in the window)`` pairs in window order. A
        window that holds a frame twice counts once, with its last position, as the original's
        assignment does.

    Raises:
        ShapeError: If a frame is in no window.
    """
    covers: list[dict[int, int]] = [{} for _ in range(num_frames)]
    for number, window in enumerate(windows):
        for position, frame in enumerate(window):
            covers[frame][number] = position
    missing = [frame for frame, cover in enumerate(covers) if not cover]
    if missing:
        raise ShapeError(f"frames {missing[:8]} of {num_frames} are in no window")
    return tuple(tuple(cover.items()) for cover in covers)


def window_weights(config: WindowConfig, size: int | None = None) -> Tensor:
    """Weigh the frames of a window for blending.

    Args:
        config: The blend, and the overlap over which ``linear`` rises and falls.
        size: Length of the window; the full length if not given (tails may be shorter).

    Returns:
        ``weights_F``: float32, all > 0; only their ratios count.
    """
    length = config.num_frames if size is None else size
    position_F = torch.arange(length, dtype=torch.float32)
    # Frames from the nearer end, counted from 1.
    edge_F = torch.minimum(position_F, length - 1 - position_F) + 1
    blend: Blend = config.blend
    if blend == "flat":
        return torch.ones(length)
    if blend == "linear":
        return (edge_F / (config.overlap + 1)).clamp(max=1.0)
    if blend == "pyramid":
        return edge_F / edge_F.max()
    offset_F = (position_F - (length - 1) / 2) / (GAUSSIAN_WIDTH * length)
    return torch.exp(-0.5 * offset_F**2)


def blend_frame(estimates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Average the estimates of one frame from all windows that hold it.

    Args:
        estimates: One frame from each window, in window order; any float dtype.
        weights: The frame's weight in each window, all > 0.

    Returns:
        The weighted mean in float32, summed in the order given: half precision or another order
        would change the last bits. A single estimate is returned as it is.
    """
    if len(estimates) == 1:
        return to_float32(estimates[0])
    total = torch.zeros_like(estimates[0], dtype=torch.float32)
    for estimate, weight in zip(estimates, weights, strict=True):
        total = total + weight * to_float32(estimate)
    return total / sum(weights)


def blend_windows(
    estimates: Sequence[Tensor],
    windows: Sequence[Window],
    weights: Sequence[Tensor],
    num_frames: int,
) -> Tensor:
    """Average the estimates of overlapping windows into one clip.

    Args:
        estimates: ``estimate_BCFHW`` of each window, in the order of the plan.
        windows: The plan; together they hold every frame.
        weights: ``weights_F`` of each window, from :func:`window_weights`.
        num_frames: Frames of the clip.

    Returns:
        ``estimate_BCTHW``: float32. Each frame is exactly :func:`blend_frame` of its estimates.

    Raises:
        ShapeError: If estimates, windows and weights do not belong together.

    Source:
        MultiDiffusion, arXiv 2302.08113, closed form of the blend, over frames. Upstream averages
        with equal weights (pipeline_controlnet.py:2078), which ``flat`` repeats bit for bit.
    """
    if not len(estimates) == len(windows) == len(weights):
        raise ShapeError(
            f"{len(windows)} windows, but {len(estimates)} estimates and {len(weights)} weights"
        )
    for estimate, window, weight in zip(estimates, windows, weights, strict=True):
        if not estimate.shape[2] == len(window) == len(weight):
            raise ShapeError(
                f"a window of {len(window)} frames has an estimate of {estimate.shape[2]} frames "
                f"and {len(weight)} weights"
            )
    scalars = [weight.tolist() for weight in weights]
    frames = [
        blend_frame(
            [estimates[number][:, :, position] for number, position in cover],
            [scalars[number][position] for number, position in cover],
        )
        for cover in covering_windows(windows, num_frames)
    ]
    return torch.stack(frames, dim=2)
