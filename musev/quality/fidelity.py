"""How near frames are to the truth, and how sharp they are.

Axes here: T frame, Y X pixel rows and columns, C channel (red, green, blue).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from musev.errors import ShapeError
from musev.quality.score import Score, unknown

_SSIM_SIGMA = 1.5
_SSIM_HALF = 5
_SSIM_C1 = (0.01 * 255) ** 2
_SSIM_C2 = (0.03 * 255) ** 2


def psnr(frames_TYXC: np.ndarray, truth_TYXC: np.ndarray) -> Score:
    """Peak signal-to-noise ratio in decibels over the whole clip; more is nearer.

    Above 40 hardly visible, 30 good, 20 poor, about 10 unrelated pictures; infinite if equal.

    Args:
        frames_TYXC: uint8.
        truth_TYXC: uint8, the same shape.

    Returns:
        Decibels: ``10 log10(255^2 / mean squared error)`` over all frames together.

    Raises:
        ShapeError: If the shapes differ.
    """
    _check_same(frames_TYXC, truth_TYXC)
    squares = [
        float(np.square(frame.astype(np.float32) - true).mean())
        for frame, true in zip(frames_TYXC, truth_TYXC, strict=True)
    ]
    error = float(np.mean(squares))
    return Score(math.inf if error == 0 else 10 * math.log10(255**2 / error))


def ssim(frames_TYXC: np.ndarray, truth_TYXC: np.ndarray) -> Score:
    """Structural similarity of the brightness, -1 to 1, mean over frames; 1 is equal.

    Args:
        frames_TYXC: uint8.
        truth_TYXC: uint8, the same shape.

    Returns:
        The mean of the similarity map, whose border of 5 pixels is left out.

    Raises:
        ShapeError: If the shapes differ.

    Source:
        Wang et al. 2004, "Image quality assessment: from error visibility to structural
        similarity", eq. 13: Gaussian window of 11 pixels and sigma 1.5, K1 0.01, K2 0.03.
    """
    _check_same(frames_TYXC, truth_TYXC)
    if min(frames_TYXC.shape[1:3]) <= 2 * _SSIM_HALF:
        return unknown("frames are smaller than the window of 11 pixels")
    values = [
        _ssim_of_pictures(to_luma(frame), to_luma(true))
        for frame, true in zip(frames_TYXC, truth_TYXC, strict=True)
    ]
    return Score(float(np.mean(values)))


def _ssim_of_pictures(first_YX: np.ndarray, second_YX: np.ndarray) -> float:
    def local(values_YX: np.ndarray) -> np.ndarray:
        size = 2 * _SSIM_HALF + 1
        blurred = cv2.GaussianBlur(values_YX, (size, size), _SSIM_SIGMA)
        return blurred[_SSIM_HALF:-_SSIM_HALF, _SSIM_HALF:-_SSIM_HALF]

    mean_1, mean_2 = local(first_YX), local(second_YX)
    variance_1 = local(first_YX**2) - mean_1**2
    variance_2 = local(second_YX**2) - mean_2**2
    both = local(first_YX * second_YX) - mean_1 * mean_2
    above = (2 * mean_1 * mean_2 + _SSIM_C1) * (2 * both + _SSIM_C2)
    below = (mean_1**2 + mean_2**2 + _SSIM_C1) * (variance_1 + variance_2 + _SSIM_C2)
    return float((above / below).mean())


def sharpness(frames_TYXC: np.ndarray) -> Score:
    """Variance of the Laplacian of the brightness, mean over frames; more is sharper.

    It depends on what is shown: compare clips of one kind, or one clip with its truth. Drawn clips
    of 128 pixels lie at about 500 to 4,000; a blur of 1 pixel divides that by more than 5.

    Args:
        frames_TYXC: uint8.

    Returns:
        Squared grey levels, from 0.
    """
    return Score(float(sharpness_of_frames(frames_TYXC).mean()))


def sharpness_of_frames(frames_TYXC: np.ndarray) -> np.ndarray:
    """The variance of the Laplacian of each frame, ``sharpness_T``."""
    return np.array([float(cv2.Laplacian(to_luma(f), cv2.CV_64F).var()) for f in frames_TYXC])


def to_luma(picture_YXC: np.ndarray) -> np.ndarray:
    """Brightness of a picture (BT.601 weights), float64, 0 to 255."""
    return picture_YXC.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def to_lab(picture_YXC: np.ndarray) -> np.ndarray:
    """CIE Lab of a uint8 picture, float32: L 0 to 100, one unit about a just visible difference."""
    return cv2.cvtColor(picture_YXC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _check_same(frames_TYXC: np.ndarray, truth_TYXC: np.ndarray) -> None:
    if frames_TYXC.shape != truth_TYXC.shape:
        raise ShapeError(
            f"frames of shape {frames_TYXC.shape} cannot be compared with a truth of shape "
            f"{truth_TYXC.shape}"
        )
