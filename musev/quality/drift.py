"""Drift: how far colours and the person move away from the beginning, as curves and as slopes.

Axes here: T frame, K cell of a coarse grid, P part of the person, Y X pixel rows and columns, C
channel. A curve has one value a frame; its frame number is the distance from the beginning.
"""

from __future__ import annotations

import cv2
import numpy as np

from musev.quality.fidelity import sharpness_of_frames, to_lab
from musev.quality.networks import PARTS
from musev.quality.pose import People
from musev.quality.score import Score, unknown

_GRID = 8
_MOST_BINS = 100
_CALM_PERCENTILE = 25
_LEAST_FOR_TREND = 24
_SURE = 0.75
_FEWEST_PIXELS = 24


def color_drift(frames_TYXC: np.ndarray) -> np.ndarray:
    """Distance of each frame's colours from those of the first frames.

    The lower quartile over an 8 x 8 grid of cells of the distance between the cell's mean colour
    and its mean colour over the first frames: where people move is left out.

    Args:
        frames_TYXC: uint8 RGB.

    Returns:
        ``distance_T``: Lab units; 1 is just visible.
    """
    colors_TK3 = np.stack([_cells(to_lab(frame)) for frame in frames_TYXC])
    first_K3 = np.median(colors_TK3[: num_first_frames(len(frames_TYXC))], axis=0)
    distance_TK = np.linalg.norm(colors_TK3 - first_K3, axis=-1)
    return np.percentile(distance_TK, _CALM_PERCENTILE, axis=1)


def subject_drift(frames_TYXC: np.ndarray, found: People) -> np.ndarray:
    """Distance of the person's colours from those of the first frames, wherever the person is.

    Args:
        frames_TYXC: uint8 RGB.
        found: What was found in them.

    Returns:
        ``distance_T``: Lab units, the mean over skin, hair, shirt and trousers of the distance of
        the part's median colour; NaN where no part is seen.
    """
    colors_TP3 = np.stack([*map(_part_colors, frames_TYXC, found.parts_TPYX)])
    first_P3 = _median_of_known(colors_TP3[: num_first_frames(len(frames_TYXC))])
    distance_TP = np.linalg.norm(colors_TP3 - first_P3, axis=-1)
    known_TP = ~np.isnan(distance_TP)
    total_T = np.where(known_TP, distance_TP, 0).sum(axis=1)
    return np.where(known_TP.any(axis=1), total_T / np.maximum(known_TP.sum(axis=1), 1), np.nan)


def drift_slope(frames_TYXC: np.ndarray) -> Score:
    """How fast colours move away from those of the first frames, Lab units per 100 frames.

    Theil-Sen's slope of :func:`color_drift`. Within -1 to 1 nothing drifts; 5 is plain to see
    within 100 frames.

    Args:
        frames_TYXC: At least 24 frames.

    Returns:
        The slope; negative if the clip comes back to its first colours.
    """
    return slope_of(color_drift(frames_TYXC))


def subject_drift_slope(frames_TYXC: np.ndarray, found: People) -> Score:
    """How fast the person's colours move away from the first frames', Lab units per 100 frames.

    Args:
        frames_TYXC: At least 24 frames.
        found: What was found in them.

    Returns:
        Theil-Sen's slope of :func:`subject_drift`.
    """
    return slope_of(subject_drift(frames_TYXC, found))


def sharpness_slope(frames_TYXC: np.ndarray) -> Score:
    """How fast sharpness changes, natural logarithm per 100 frames; -0.7 halves it.

    Args:
        frames_TYXC: At least 24 frames.

    Returns:
        Theil-Sen's slope of the logarithm of each frame's sharpness; about 0 if nothing changes.
    """
    return slope_of(np.log(sharpness_of_frames(frames_TYXC) + 1.0))


def slope_of(curve_T: np.ndarray) -> Score:
    """Theil-Sen's slope of a curve, per 100 frames: the median slope of all pairs.

    Args:
        curve_T: One value a frame; NaN where there is none. Long curves are averaged to 100 bins.

    Returns:
        The slope; unknown with fewer than 24 values.
    """
    times = np.flatnonzero(~np.isnan(curve_T))
    if len(times) < _LEAST_FOR_TREND:
        return unknown(f"a trend needs at least {_LEAST_FOR_TREND} frames")
    bins = np.array_split(times, min(len(times), _MOST_BINS))
    middles = np.array([bin_.mean() for bin_ in bins])
    means = np.array([curve_T[bin_].mean() for bin_ in bins])
    later, earlier = np.triu_indices(len(bins), 1)[::-1]
    slopes = (means[later] - means[earlier]) / (middles[later] - middles[earlier])
    return Score(100 * float(np.median(slopes)))


def num_first_frames(num_frames: int) -> int:
    """How many frames count as the beginning: a quarter, two to eight."""
    return max(2, min(8, num_frames // 4))


def _part_colors(frame_YXC: np.ndarray, parts_PYX: np.ndarray) -> np.ndarray:
    lab_YX3 = to_lab(frame_YXC)
    colors_P3 = np.full((len(PARTS) - 1, 3), np.nan)
    for number, sure_YX in enumerate(parts_PYX[1:] > _SURE):
        if sure_YX.sum() >= _FEWEST_PIXELS:
            colors_P3[number] = np.median(lab_YX3[sure_YX], axis=0)
    return colors_P3


def _median_of_known(colors_TP3: np.ndarray) -> np.ndarray:
    middle_P3 = np.full(colors_TP3.shape[1:], np.nan)
    for number in range(colors_TP3.shape[1]):
        known_T3 = colors_TP3[~np.isnan(colors_TP3[:, number, 0]), number]
        if len(known_T3):
            middle_P3[number] = np.median(known_T3, axis=0)
    return middle_P3


def _cells(picture_YXC: np.ndarray) -> np.ndarray:
    return cv2.resize(picture_YXC, (_GRID, _GRID), interpolation=cv2.INTER_AREA).reshape(-1, 3)
