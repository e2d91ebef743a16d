"""Curves of a clip over its frames, for a page that shows them.

Axes here: T frame, C channel.
"""

from __future__ import annotations

import math

import numpy as np

from musev.quality import drift
from musev.quality.clip import Expected
from musev.quality.pose import find_people
from musev.quality.seams import seam_curve, window_borders

MOST_POINTS = 400


def curves_of(frames_TYXC: np.ndarray, expected: Expected) -> dict[str, list[float | None]]:
    """Compute what the judges of drift and seams looked at.

    Args:
        frames_TYXC: uint8 RGB.
        expected: What is known about the clip.

    Returns:
        Values over the frames, the same distance apart, at most :data:`MOST_POINTS` (means of
        stretches): ``color_drift`` and, where a drawn person is expected, ``subject_drift`` in Lab
        units; where the windows are known ``seam_curve``, never shortened, and ``borders``: the
        generated frames that begin at a border.
    """
    curves = {"color_drift": _shorten(drift.color_drift(frames_TYXC))}
    if expected.shows_person:
        curves["subject_drift"] = _shorten(
            drift.subject_drift(frames_TYXC, find_people(frames_TYXC))
        )
    if expected.windows is not None:
        generated_TYXC = expected.generated(frames_TYXC)
        borders = window_borders(expected.windows, len(generated_TYXC))
        if borders and len(generated_TYXC) <= MOST_POINTS:
            curves["seam_curve"] = _plain(seam_curve(generated_TYXC, expected.windows))
            curves["borders"] = [float(border) for border in borders]
    return curves


def _shorten(curve_T: np.ndarray) -> list[float | None]:
    stretches = np.array_split(curve_T, min(len(curve_T), MOST_POINTS))
    return _plain(np.array([_mean_of_known(stretch) for stretch in stretches]))


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _plain(curve: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 3) for value in curve]
