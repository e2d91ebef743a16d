"""Seams: whether one can see where the windows of the last step begin and end.

Axes here: T frame, Y X pixel rows and columns, C channel. A border is a frame number: the change
between that frame and the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from musev.config import SamplingConfig
from musev.denoise.windows import Window, covering_windows, plan_windows
from musev.errors import ShapeError
from musev.quality.fidelity import to_lab
from musev.quality.score import Score, unknown
from musev.quality.temporal import flows

_LEAST_ELSEWHERE = 4
_NO_CHANGE = 0.02
"""Mean Lab units, or grey levels of the error, from a frame to the next that nobody sees and that
encoding brings about: a still picture of 128 pixels at CRF 18 changes by up to 0.013, and one grey
level more everywhere is 0.3."""


def last_step_windows(
    num_frames: int, sampling: SamplingConfig, *, seed: int = 0
) -> tuple[Window, ...]:
    """The windows of the last step of a clip: where its seams would be.

    Args:
        num_frames: Frames of the clip.
        sampling: As it was rendered.
        seed: As it was planned with.

    Returns:
        Frame numbers of each window.
    """
    steps = sampling.num_steps
    return plan_windows(num_frames, sampling.windows, step=steps - 1, num_steps=steps, seed=seed)


def window_borders(windows: Sequence[Window], num_frames: int) -> tuple[int, ...]:
    """Find the frames that are not in the same windows as the frame before them.

    Args:
        windows: The plan of one step.
        num_frames: Frames of the clip.

    Returns:
        Frame numbers, rising, each at least 1. Where windows overlap, both ends of the overlap are
        borders.
    """
    covers = [
        frozenset(number for number, _ in cover) for cover in covering_windows(windows, num_frames)
    ]
    return tuple(frame for frame in range(1, num_frames) if covers[frame] != covers[frame - 1])


def seam_ratio(
    frames_TYXC: np.ndarray,
    windows: Sequence[Window],
    truth_TYXC: np.ndarray | None = None,
) -> Score:
    """Change across window borders over the change elsewhere; 1 is invisible, 2 plain to see.

    The ratio of geometric means of :func:`seam_curve`, so one wild frame does not decide.

    Args:
        frames_TYXC: The clip, uint8.
        windows: The clip's own windows of the last step, from :func:`last_step_windows`.
        truth_TYXC: What the frames should be, if known.

    Returns:
        The ratio, from 0. For a single clip of 96 frames it scatters by some 0.1 around its mean.

    Raises:
        ShapeError: If the truth has another shape.
    """
    if truth_TYXC is not None and truth_TYXC.shape != frames_TYXC.shape:
        raise ShapeError(f"frames are {frames_TYXC.shape}, the truth is {truth_TYXC.shape}")
    num_frames = len(frames_TYXC)
    borders = window_borders(windows, num_frames)
    if not borders:
        return unknown("the whole clip is one window")
    if num_frames - 1 - len(borders) < _LEAST_ELSEWHERE:
        return unknown("nearly every frame is at a border")
    curve_T = seam_curve(frames_TYXC, windows, truth_TYXC)
    if np.isnan(curve_T).all():
        return unknown("frames do not change, or are exactly the truth")
    return Score(float(np.exp(np.log(curve_T[np.array(borders) - 1]).mean())))


def seam_curve(
    frames_TYXC: np.ndarray,
    windows: Sequence[Window],
    truth_TYXC: np.ndarray | None = None,
) -> np.ndarray:
    """The change into every frame but the first, relative to the usual away from borders.

    With the truth, the change is that of the error (frame minus truth) and the truth's own change
    is divided out as motion. Without, it is what is left of a frame, in Lab, after the one before
    it was moved along the optical flow, and the flow's mean length is divided out. Dividing out
    means: the logarithm of the change is regressed on that of the motion, away from borders.

    Args:
        frames_TYXC: The clip, uint8.
        windows: As for :func:`seam_ratio`.
        truth_TYXC: What the frames should be, if known; of the same shape.

    Returns:
        ``curve_T``: the value at ``t`` belongs to frame ``t + 1``; away from borders the geometric
        mean is 1. NaN throughout if no frame changes.
    """
    if truth_TYXC is None:
        change_T, motion_T = _unexplained_change(frames_TYXC)
    else:
        change_T, motion_T = _error_change(frames_TYXC, truth_TYXC)
    if change_T.max() < _NO_CHANGE:
        return np.full(len(change_T), np.nan)
    away_T = np.ones(len(change_T), bool)
    away_T[np.array(window_borders(windows, len(frames_TYXC)), int) - 1] = False
    # Windows that stand still, with a jump at each border: their changes must not come to nothing.
    change = np.log(np.maximum(change_T + 1e-3 * change_T.mean(), _NO_CHANGE))
    motion = np.log(motion_T + 0.1 * motion_T.mean() + 1e-6)
    calm = motion[away_T] - motion[away_T].mean()
    # More motion cannot mean less change, nor more than in proportion.
    slope = float(np.clip((calm @ change[away_T]) / max(calm @ calm, 1e-9), 0, 1))
    rest = change - slope * motion
    return np.exp(rest - rest[away_T].mean())


def _error_change(frames_TYXC: np.ndarray, truth_TYXC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    change, motion = [], []
    for t in range(1, len(frames_TYXC)):
        true = truth_TYXC[t].astype(np.float32) - truth_TYXC[t - 1]
        change.append(np.abs(frames_TYXC[t].astype(np.float32) - frames_TYXC[t - 1] - true).mean())
        motion.append(np.abs(true).mean())
    return np.array(change), np.array(motion)


def _unexplained_change(frames_TYXC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows_YX, columns_YX = np.indices(frames_TYXC.shape[1:3], dtype=np.float32)
    change, motion = [], []
    # The flow from each frame back to the one before it says where its pixels came from.
    backward = flows(frames_TYXC[::-1])[::-1]
    for t, flow in enumerate(backward, start=1):
        came_from = (columns_YX + flow[..., 0], rows_YX + flow[..., 1])
        moved = cv2.remap(
            to_lab(frames_TYXC[t - 1]),
            *came_from,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        change.append(np.abs(to_lab(frames_TYXC[t]) - moved).mean())
        motion.append(np.hypot(flow[..., 0], flow[..., 1]).mean())
    return np.array(change), np.array(motion)
