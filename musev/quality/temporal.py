"""How frames follow each other: flicker, standstill, order, cuts, loops, motion.

Axes here: T frame, K cell of a coarse grid, Y X pixel rows and columns, C channel. Every judge
takes ``frames_TYXC`` uint8 RGB and is a pure function.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from musev.quality.fidelity import to_luma
from musev.quality.score import Score, unknown

_GRID = 8
_FROZEN_GREY = 1.0
_BLACK_GREY = 12.0
_CUT_GREY = 24.0
_GRAIN_GREY = 4
_CALM_PERCENTILE = 25
_TEXTURE = 12.0


def flicker(frames_TYXC: np.ndarray) -> Score:
    """VBench's temporal flickering, 0 to 1; 1 means that nothing changes from frame to frame.

    It counts honest motion too: compare it between clips that move alike, or with
    :func:`background_flicker`.

    Args:
        frames_TYXC: At least two frames.

    Returns:
        ``(255 - mean absolute difference of neighbouring frames) / 255``.

    Source:
        VBench, arXiv 2311.17982, section 3.1.1 "temporal flickering".
    """
    if len(frames_TYXC) < 2:
        return unknown("one frame alone cannot flicker")
    return Score((255.0 - float(_changes(frames_TYXC, 1).mean())) / 255.0)


def background_flicker(frames_TYXC: np.ndarray) -> Score:
    """Grey levels by which the stillest quarter of the picture shimmers; 0 is perfectly still.

    Each pixel is compared with the mean of the frames before and after it, and the lower quartile
    is taken over pixels, so what moves does not count as long as a quarter stands still.

    Args:
        frames_TYXC: At least three frames.

    Returns:
        Grey levels, 0 to 255. Drawn clips: below 0.2; noise of 4 grey levels: about 4.
    """
    if len(frames_TYXC) < 3:
        return unknown("shimmer needs three frames")
    total_YX = np.zeros(frames_TYXC.shape[1:3])
    for before, now, after in zip(frames_TYXC, frames_TYXC[1:], frames_TYXC[2:], strict=False):
        middle = (before.astype(np.float32) + after) / 2
        total_YX += np.abs(now - middle).mean(axis=-1)
    return Score(float(np.percentile(total_YX, _CALM_PERCENTILE)) / (len(frames_TYXC) - 2))


def frozen_share(frames_TYXC: np.ndarray) -> Score:
    """Share of neighbouring frames between which nothing moves, 0 to 1; 1 is a still picture.

    Nothing moves if no cell of 4 x 4 pixels changes by more than a grey level on average, which
    forgives what an encoder does to a still picture.

    Args:
        frames_TYXC: At least two frames.

    Returns:
        The share.
    """
    if len(frames_TYXC) < 2:
        return unknown("one frame alone cannot stand still")
    most_T = []
    for before, now in itertools.pairwise(frames_TYXC):
        change = np.abs(now.astype(np.float32) - before).mean(axis=-1)
        size = (max(1, change.shape[1] // 4), max(1, change.shape[0] // 4))
        most_T.append(cv2.resize(change, size, interpolation=cv2.INTER_AREA).max())
    return Score(float((np.array(most_T) < _FROZEN_GREY).mean()))


def disorder(frames_TYXC: np.ndarray) -> Score:
    """Change over one frame relative to the change over two; about 1 if frames are in no order.

    Smooth motion changes the picture over two frames nearly twice as much as over one: 0.5 to 0.8.
    Changes within 4 grey levels of a thirty-second of the picture do not count: grain is no motion.

    Args:
        frames_TYXC: At least 6 frames of which some differ.

    Returns:
        The ratio of the mean changes, from about 0.5; above 1 for motion back and forth.
    """
    if len(frames_TYXC) < 6:
        return unknown("an order needs at least 6 frames")
    small = _shrink(frames_TYXC)
    one, two = (_changes(small, lag, above=_GRAIN_GREY).mean() for lag in (1, 2))
    if two < 1e-3:
        return unknown("nothing moves")
    return Score(float(one / two))


def loop_distance(frames_TYXC: np.ndarray) -> Score:
    """Distance of the nearest repetition, in steps from frame to frame; about 0 plays a loop.

    Args:
        frames_TYXC: At least 12 frames of which some differ.

    Returns:
        The least mean difference of frames three or more apart (up to half the clip), divided by
        that of neighbours. People who move in rhythm come near: 0.4 and more; a loop is below 0.1.
    """
    if len(frames_TYXC) < 12:
        return unknown("a loop needs at least 12 frames")
    small = _shrink(frames_TYXC)
    neighbours = _changes(small, 1).mean()
    if neighbours < 1e-3:
        return unknown("nothing moves")
    lags = range(3, len(small) // 2 + 1)
    return Score(float(min(_changes(small, lag).mean() for lag in lags) / neighbours))


def num_cuts(frames_TYXC: np.ndarray) -> Score:
    """How often the picture changes as a whole from one frame to the next; a count from 0.

    Args:
        frames_TYXC: At least two frames.

    Returns:
        Pairs of neighbours in which most cells of an 8 x 8 grid change by more than 24 grey levels.
    """
    if len(frames_TYXC) < 2:
        return unknown("one frame alone has no cuts")
    cells_TK3 = np.stack([_cells(frame.astype(np.float32)) for frame in frames_TYXC])
    change_TK = np.abs(np.diff(cells_TK3, axis=0)).mean(axis=-1)
    return Score(float(((change_TK > _CUT_GREY).mean(axis=1) > 0.5).sum()))


def black_share(frames_TYXC: np.ndarray) -> Score:
    """Share of frames that are black, 0 to 1.

    Args:
        frames_TYXC: Frames.

    Returns:
        Frames of which 98 in 100 pixels are darker than 12 grey levels.
    """
    dark = [np.percentile(to_luma(frame), 98) < _BLACK_GREY for frame in frames_TYXC]
    return Score(float(np.mean(dark)))


def motion(frames_TYXC: np.ndarray) -> Score:
    """How fast the liveliest twentieth of the picture moves, in picture heights a frame.

    Args:
        frames_TYXC: At least two frames.

    Returns:
        The mean over time of the 95th percentile of the optical flow's length; 0 stands still, a
        person who walks is at about 0.01 to 0.04.
    """
    if len(frames_TYXC) < 2:
        return unknown("one frame alone does not move")
    fast = [np.percentile(np.hypot(*flow.transpose(2, 0, 1)), 95) for flow in flows(frames_TYXC)]
    return Score(float(np.mean(fast)) / frames_TYXC.shape[1])


def camera_motion(frames_TYXC: np.ndarray) -> Score:
    """How fast the picture moves as a whole, in picture heights a frame; 0 is a fixed camera.

    Args:
        frames_TYXC: At least two frames with some texture beside the person.

    Returns:
        The mean over time of the median flow of the textured pixels of the outer quarters.
    """
    if len(frames_TYXC) < 2:
        return unknown("one frame alone does not move")
    quarter = frames_TYXC.shape[2] // 4
    lengths = []
    for frame, flow in zip(frames_TYXC, flows(frames_TYXC), strict=False):
        slopes = np.abs(np.gradient(to_luma(frame))).sum(axis=0) > _TEXTURE
        slopes[:, quarter:-quarter] = False
        if slopes.sum() >= 40:
            lengths.append(float(np.hypot(*np.median(flow[slopes], axis=0))))
    if len(lengths) * 2 < len(frames_TYXC) - 1:
        return unknown("too little texture beside the person")
    return Score(float(np.mean(lengths)) / frames_TYXC.shape[1])


def flows(frames_TYXC: np.ndarray) -> list[np.ndarray]:
    """Optical flow from each frame to the next.

    Args:
        frames_TYXC: Frames.

    Returns:
        ``flow_YX2`` of each pair, float32 pixels (x, y): where a pixel goes.
    """
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_TYXC]
    return [finder.calc(before, now, None) for before, now in itertools.pairwise(grey)]


def _changes(frames_TYXC: np.ndarray, lag: int, *, above: int = 0) -> np.ndarray:
    """Mean absolute difference of frames that are ``lag`` apart, less what is within ``above``."""
    pairs = zip(frames_TYXC, frames_TYXC[lag:], strict=False)
    differences = (cv2.absdiff(before, now) for before, now in pairs)
    return np.array([float(cv2.subtract(d, np.full_like(d, above)).mean()) for d in differences])


def _shrink(frames_TYXC: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(f, (32, 32), interpolation=cv2.INTER_AREA) for f in frames_TYXC])


def _cells(picture_YXC: np.ndarray) -> np.ndarray:
    return cv2.resize(picture_YXC, (_GRID, _GRID), interpolation=cv2.INTER_AREA).reshape(-1, 3)
