"""Colours of one picture given to another."""

from __future__ import annotations

import numpy as np

from musev.errors import ShapeError

_LEVELS = 256


def match_histograms(frames_TYXC: np.ndarray, target_YXC: np.ndarray) -> np.ndarray:
    """Give every frame the distribution of levels that a target has, channel by channel.

    Every level goes to the target's level of the same rank; between the ranks that the target has,
    it is interpolated and cut off.

    Args:
        frames_TYXC: uint8.
        target_YXC: uint8, of any size.

    Returns:
        ``frames_TYXC``: uint8, new.

    Raises:
        ShapeError: If one of them is not uint8 or their channels differ.

    Source:
        The original calls scikit-image's ``match_histograms`` (ALGORITHM.md 12.2).
    """
    if frames_TYXC.dtype != np.uint8 or target_YXC.dtype != np.uint8:
        raise ShapeError(
            f"histograms are matched of uint8, got {frames_TYXC.dtype} and {target_YXC.dtype}"
        )
    if frames_TYXC.shape[-1] != target_YXC.shape[-1]:
        raise ShapeError(f"channels differ: {frames_TYXC.shape} and {target_YXC.shape}")
    matched = np.empty_like(frames_TYXC)
    for channel in range(target_YXC.shape[-1]):
        wanted = _ranks(target_YXC[..., channel])
        present = np.flatnonzero(np.diff(wanted, prepend=0.0))
        for frame_YXC, out_YXC in zip(frames_TYXC, matched, strict=True):
            ranks = _ranks(frame_YXC[..., channel])
            table = np.interp(ranks, wanted[present], present).astype(np.uint8)
            out_YXC[..., channel] = table[frame_YXC[..., channel]]
    return matched


def _ranks(plane_YX: np.ndarray) -> np.ndarray:
    """Share of pixels at or below each level."""
    counts = np.bincount(plane_YX.reshape(-1), minlength=_LEVELS)
    return np.cumsum(counts) / plane_YX.size
