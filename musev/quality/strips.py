"""Strip pictures: what the judges of seams saw, for people to look at.

Axes here: T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from musev.denoise.windows import Window
from musev.quality.seams import seam_curve, window_borders

_GAP_PX = 4
_PAPER, _MARK = 255, (216, 60, 50)
_AMPLIFIED = 4
_HEAT = cv2.COLORMAP_INFERNO


def seam_strip(
    frames_TYXC: np.ndarray,
    windows: Sequence[Window],
    *,
    max_seams: int = 4,
    side_px: int = 128,
) -> np.ndarray | None:
    """Draw the worst seams, a row each: two frames before the border, two after, two differences.

    The first difference map is that across the border, the second that of the two frames before
    it, both four times amplified: an invisible seam shows two maps alike. A red line stands at the
    border.

    Args:
        frames_TYXC: The clip, uint8.
        windows: Its windows of the last step.
        max_seams: Rows at most.
        side_px: Longest side of a frame in the strip.

    Returns:
        ``picture_YXC``: uint8; None for a clip without borders.
    """
    borders = [b for b in window_borders(windows, len(frames_TYXC)) if b >= 2]
    borders = [border for border in borders if border + 1 < len(frames_TYXC)]
    if not borders:
        return None
    curve_T = np.nan_to_num(seam_curve(frames_TYXC, windows), nan=1.0)
    worst = sorted(borders, key=lambda border: -curve_T[border - 1])[:max_seams]
    rows = [_seam_row(frames_TYXC[border - 2 : border + 2], side_px) for border in sorted(worst)]
    return np.concatenate([row for pair in rows for row in (pair, _gap(pair))][:-1])


def frame_strip(frames_TYXC: np.ndarray, *, count: int = 6, side_px: int = 128) -> np.ndarray:
    """Draw evenly spaced frames side by side, first and last included.

    Args:
        frames_TYXC: The clip, uint8.
        count: How many, at most.
        side_px: Longest side of a frame in the strip.

    Returns:
        ``picture_YXC``: uint8.
    """
    picks = np.unique(np.linspace(0, len(frames_TYXC) - 1, count).round().astype(int))
    return _side_by_side([_shrink(frames_TYXC[pick], side_px) for pick in picks])


def _seam_row(four_TYXC: np.ndarray, side_px: int) -> np.ndarray:
    small = [_shrink(frame, side_px) for frame in four_TYXC]
    across, before = (
        _heat(np.abs(one.astype(np.int16) - other))
        for one, other in ((small[2], small[1]), (small[1], small[0]))
    )
    mark = np.full((len(small[0]), _GAP_PX, 3), _MARK, np.uint8)
    left, right = _side_by_side(small[:2]), _side_by_side([*small[2:], across, before])
    return np.concatenate([left, mark, right], axis=1)


def _heat(difference_YXC: np.ndarray) -> np.ndarray:
    grey_YX = np.clip(difference_YXC.mean(axis=-1) * _AMPLIFIED, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey_YX, _HEAT), cv2.COLOR_BGR2RGB)


def _shrink(frame_YXC: np.ndarray, side_px: int) -> np.ndarray:
    scale = side_px / max(frame_YXC.shape[:2])
    if scale >= 1:
        return frame_YXC
    height, width = (max(1, round(size * scale)) for size in frame_YXC.shape[:2])
    return cv2.resize(frame_YXC, (width, height), interpolation=cv2.INTER_AREA)


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((len(pictures[0]), _GAP_PX, 3), _PAPER, np.uint8)
    return np.concatenate([part for one in pictures for part in (one, gap)][:-1], axis=1)


def _gap(row_YXC: np.ndarray) -> np.ndarray:
    return np.full((_GAP_PX, row_YXC.shape[1], 3), _PAPER, np.uint8)
