"""Overlays: writing and logos that stay where they are, whatever moves behind them.

Axes here: N clip, T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import cv2
import numpy as np

from musev.quality.fidelity import to_luma
from musev.quality.score import Score, unknown

_MOST_FRAMES = 48
_FEWEST_FRAMES, _FEWEST_CLIPS = 6, 12
_BOX_PX, _ASIDE_PX = 5, 4
_CHANGED_GREY = 12.0
_COVERED = 0.5
"""Share of a pixel's surroundings, on every side, that has changed while something passes it."""
_EDGE_GREY = 10.0
_SAME = 0.5
"""Difference of slopes, relative to the edge's own, within which the edge is still seen."""
_STAYS = 0.6
_FEWEST_PASSES, _FEWEST_PASSED_PX = 2, 40
_SHARED_GREY = 4.0
_CLUSTER = np.ones((5, 5), np.uint8)


def static_overlay(frames_TYXC: np.ndarray) -> Score:
    """Size of the largest writing or logo that stays in sight while something passes behind it.

    An edge of the scene vanishes while somebody stands in front of it; a watermark does not. What
    nothing ever passes cannot be judged here: a logo in a still corner looks like a part of the
    scene. :func:`shared_overlay` sees it, given enough clips.

    Args:
        frames_TYXC: At least 6 frames, uint8.

    Returns:
        Edge pixels of the largest cluster, in thousandths of the picture. Drawn clips: below 1, but
        for one in fifty; words across pictures that move: above 1 in four of ten, up to 15.
    """
    if len(frames_TYXC) < _FEWEST_FRAMES:
        return unknown(f"an overlay needs at least {_FEWEST_FRAMES} frames")
    stayed_YX, passed_YX = _passed_edges(frames_TYXC)
    if passed_YX.sum() < _FEWEST_PASSED_PX:
        return unknown("nothing passes in front of an edge")
    return Score(1000 * _largest_cluster(stayed_YX) / stayed_YX.size)


def shared_overlay(pictures_NYXC: np.ndarray) -> Score:
    """Size of the largest writing or logo that clips of different things have in common.

    Args:
        pictures_NYXC: One frame of each of at least 12 clips that differ, uint8.

    Returns:
        Edge pixels of the largest cluster, in thousandths of the picture. Drawn clips: below 10
        (people stand in the middle of all of them); a faint word in a corner: above 50.

    Source:
        Dekel et al. 2017, "On the effectiveness of visible watermarks", eq. 4: over many pictures,
        the median slope at a pixel is that of the watermark.
    """
    if len(pictures_NYXC) < _FEWEST_CLIPS:
        return unknown(f"what clips share needs at least {_FEWEST_CLIPS} clips")
    slopes_N2YX = np.stack([_slopes(to_luma(picture)) for picture in pictures_NYXC])
    strength_YX = np.hypot(*np.median(slopes_N2YX, axis=0))
    return Score(1000 * _largest_cluster(strength_YX > _SHARED_GREY) / strength_YX.size)


def _passed_edges(frames_TYXC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges that stayed in sight while something passed, and all that something passed."""
    picks = np.unique(np.linspace(0, len(frames_TYXC) - 1, _MOST_FRAMES).round().astype(int))
    luma_TYX = np.stack([to_luma(frames_TYXC[t]).astype(np.float32) for t in picks])
    usual_YX = np.median(luma_TYX, axis=0)
    edge_2YX = _slopes(usual_YX)
    strength_YX = np.hypot(*edge_2YX)
    kept_YX, times_YX = np.zeros_like(usual_YX), np.zeros_like(usual_YX)
    for luma_YX in luma_TYX:
        changed_YX = (np.abs(luma_YX - usual_YX) > _CHANGED_GREY).astype(np.float32)
        passing_YX = _on_all_sides(cv2.blur(changed_YX, (_BOX_PX, _BOX_PX))) >= _COVERED
        other_YX = np.hypot(*(_slopes(luma_YX) - edge_2YX))
        kept_YX += passing_YX & (other_YX < _SAME * strength_YX)
        times_YX += passing_YX
    passed_YX = (strength_YX > _EDGE_GREY) & (times_YX >= _FEWEST_PASSES)
    return passed_YX & (kept_YX > _STAYS * times_YX), passed_YX


def _on_all_sides(share_YX: np.ndarray) -> np.ndarray:
    """The least of the shares left, right, above and below: along an outline one of them is 0."""
    wide_YX = np.pad(share_YX, _ASIDE_PX, mode="edge")
    height, width = share_YX.shape
    offsets = ((0, 1), (2, 1), (1, 0), (1, 2))
    starts = [(y * _ASIDE_PX, x * _ASIDE_PX) for y, x in offsets]
    return np.min([wide_YX[y : y + height, x : x + width] for y, x in starts], axis=0)


def _largest_cluster(marked_YX: np.ndarray) -> int:
    """Marked pixels of the largest cluster; gaps of up to 4 pixels do not part it."""
    joined_YX = cv2.dilate(marked_YX.astype(np.uint8), _CLUSTER)
    _, labels_YX = cv2.connectedComponents(joined_YX)
    sizes = np.bincount(labels_YX[marked_YX], minlength=1)
    return int(sizes.max())


def _slopes(luma_YX: np.ndarray) -> np.ndarray:
    luma_YX = luma_YX.astype(np.float32)
    across = cv2.Sobel(luma_YX, cv2.CV_32F, 1, 0, scale=0.25)
    return np.stack([across, cv2.Sobel(luma_YX, cv2.CV_32F, 0, 1, scale=0.25)])
