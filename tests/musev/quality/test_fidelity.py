"""Nearness to the truth and sharpness: closed forms, and order under growing damage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from musev.errors import ShapeError
from musev.quality.fidelity import psnr, sharpness, ssim, to_lab, to_luma
from tests.musev.quality.controls import blurred, frames, grainy


def test_psnr_is_its_formula() -> None:
    truth = np.full((2, 8, 8, 3), 100, np.uint8)
    assert psnr(truth, truth).value == math.inf
    off = truth.copy()
    off[0] += 10
    assert psnr(off, truth).value == pytest.approx(10 * math.log10(255**2 / 50))


def test_ssim_is_one_for_equal_frames_and_falls_with_damage() -> None:
    clip = frames(0)[:4]
    assert ssim(clip, clip).value == pytest.approx(1)
    values = [ssim(grainy(clip, grey), clip).value for grey in (2, 6, 18)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.6
    assert ssim(255 - clip, clip).value < 0.2


def test_ssim_by_hand_at_one_place() -> None:
    """Eq. 13 with the Gaussian window written out; the picture has one place that counts."""
    random = np.random.default_rng(3)
    first, second = random.integers(0, 256, (2, 1, 11, 11, 1)).repeat(3, axis=-1).astype(np.uint8)
    bell = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(bell, bell) / bell.sum() ** 2
    x, y = to_luma(first[0]), to_luma(second[0])
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    variance_x, variance_y = (weights * x**2).sum() - mean_x**2, (weights * y**2).sum() - mean_y**2
    both = (weights * x * y).sum() - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    assert ssim(first, second).value == pytest.approx(expected, abs=1e-6)


def test_a_blur_of_a_pixel_divides_the_sharpness_by_five() -> None:
    for index in range(6):
        clip = frames(index)[:3]
        assert 300 < sharpness(clip).value < 6000
        assert sharpness(blurred(clip, 1.0)).value < sharpness(clip).value / 5


def test_lab_is_the_known_one() -> None:
    """CIE values of sRGB red and mid grey."""
    colors = np.array([[[255, 0, 0], [119, 119, 119], [255, 255, 255]]], np.uint8)
    expected = [[53.24, 80.09, 67.2], [50.03, 0, 0], [100, 0, 0]]
    assert to_lab(colors)[0] == pytest.approx(np.array(expected), abs=0.3)


def test_other_shapes_are_refused_and_small_ones_get_a_reason() -> None:
    clip = frames(0)[:3]
    with pytest.raises(ShapeError, match="cannot be compared"):
        psnr(clip[:2], clip)
    with pytest.raises(ShapeError, match="cannot be compared"):
        ssim(clip[:, :64], clip)
    assert not ssim(clip[:, :10], clip[:, :10]).known
