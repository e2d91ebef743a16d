"""Control maps that need no weights: edges, lines by filtering, a warp, and the frame itself.

Also the resolution that every detector works at. Each function takes a frame at that resolution and
gives a map of the same size.

Axes here: Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

GRID_PX = 64
"""Both sides of what a detector looks at are multiples of this many pixels."""
WARP_CELL_PX = 256
"""Spacing of the warp's random points (ControlNet's content shuffle)."""
LINE_BLUR_PX = 6.0
LINE_THRESHOLD = 8
LINE_MIN_SCALE = 16
LINE_LEVEL = 127
"""controlnet_aux ``lineart_standard``: sigma of the blur, what counts as a line, the least value
that lines are scaled by, and the level that their median gets."""


def to_detection_size(frame_YXC: np.ndarray, resolution: int | None = None) -> np.ndarray:
    """Resize a frame to the size at which detectors look at it.

    Args:
        frame_YXC: uint8.
        resolution: Short side in pixels; None for that of the frame.

    Returns:
        The frame, sides rounded to multiples of 64 (ties to even), never below.

    Source:
        ``resize_image`` of ControlNet's annotators; the resolution is the original's
        ``min(height, width)`` (ALGORITHM.md 13).
    """
    height, width = frame_YXC.shape[:2]
    scale = max(GRID_PX, resolution or min(height, width)) / min(height, width)
    rows, columns = (max(1, round(side * scale / GRID_PX)) * GRID_PX for side in (height, width))
    if (rows, columns) == (height, width):
        return frame_YXC
    how = cv2.INTER_LANCZOS4 if scale > 1 else cv2.INTER_AREA
    return cv2.resize(frame_YXC, (columns, rows), interpolation=how)


def to_frame_size(map_YXC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map to its frame's size, linearly; grey maps become RGB."""
    if map_YXC.ndim == 2:
        map_YXC = np.repeat(map_YXC[..., None], 3, axis=2)
    if map_YXC.shape[:2] == (height, width):
        return map_YXC
    return cv2.resize(map_YXC, (width, height), interpolation=cv2.INTER_LINEAR)


def canny_map(frame_YXC: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Edges after Canny: white on black, ``map_YX``."""
    return cv2.Canny(frame_YXC, low, high)


def line_map(frame_YXC: np.ndarray) -> np.ndarray:
    """Dark lines of a frame, by subtracting it from its blur: white on black, ``map_YX``.

    Source:
        controlnet_aux ``LineartStandardDetector``.
    """
    values = frame_YXC.astype(np.float32)
    darker = cv2.GaussianBlur(values, (0, 0), LINE_BLUR_PX) - values
    lines_YX = darker.min(axis=2).clip(0, 255)
    strong = lines_YX[lines_YX > LINE_THRESHOLD]
    scale = max(LINE_MIN_SCALE, np.median(strong)) if strong.size else LINE_MIN_SCALE
    return (lines_YX / scale * LINE_LEVEL).clip(0, 255).astype(np.uint8)


def warp_map(frame_YXC: np.ndarray, *, seed: int) -> np.ndarray:
    """Shuffle a frame's content by a smooth random warp, ``map_YXC``.

    The warp depends on the seed and the frame's size only, so all frames of a video get the same,
    and a repeated run as well. The original draws another for every frame.

    Args:
        frame_YXC: uint8.
        seed: Of the warp.

    Returns:
        The warped frame.

    Source:
        controlnet_aux ``ContentShuffleDetector``, whose draws are these after
        ``numpy.random.seed(seed)``.
    """
    return cv2.remap(frame_YXC, _warp(*frame_YXC.shape[:2], seed), None, cv2.INTER_LINEAR)


@functools.lru_cache(maxsize=4)
def _warp(height: int, width: int, seed: int) -> np.ndarray:
    draws = np.random.RandomState(seed)
    columns = _smooth_noise(draws, height, width) * float(width - 1)
    rows = _smooth_noise(draws, height, width) * float(height - 1)
    return np.stack([columns, rows], axis=2).astype(np.float32)


def _smooth_noise(draws: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Noise of large waves over the whole range 0..1, ``[height, width]``."""
    cell = WARP_CELL_PX
    coarse = draws.uniform(0, 1, size=(height // cell + 2, width // cell + 2, 1))
    size = (width + 2 * cell, height + 2 * cell)
    noise = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    noise = noise[cell : cell + height, cell : cell + width]
    noise = noise - noise.min()
    return noise / noise.max()
