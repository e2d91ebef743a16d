"""Maps without weights equal controlnet_aux's, keep their size and repeat."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musev.control.aux_library import import_controlnet_aux
from musev.control.plain_maps import (
    canny_map,
    line_map,
    to_detection_size,
    to_frame_size,
    warp_map,
)


def picture(height: int, width: int) -> np.ndarray:
    """A disc and a bar on a slope, with a little noise."""
    rng = np.random.default_rng(0)
    image = (
        np.zeros((height, width, 3), np.uint8)
        + np.linspace(60, 180, width, dtype=np.uint8)[None, :, None]
    )
    cv2.circle(image, (width // 2, height // 2), height // 4, (240, 30, 90), -1)
    cv2.line(image, (0, height // 5), (width - 1, height // 3), (10, 10, 10), 3)
    return cv2.add(image, rng.integers(0, 6, image.shape, dtype=np.uint8))


@pytest.mark.parametrize(
    ("shape", "resolution", "expected"),
    [
        ((128, 192), None, (128, 192)),
        ((100, 150), None, (128, 128)),
        ((90, 600), None, (64, 576)),
        ((20, 30), None, (64, 128)),
        ((480, 854), 512, (512, 896)),
        ((1080, 1920), 512, (512, 896)),
        ((640, 64), 64, (640, 64)),
    ],
)
def test_detection_sizes_are_multiples_of_64(shape, resolution, expected) -> None:
    assert to_detection_size(picture(*shape), resolution).shape == (*expected, 3)


@pytest.mark.parametrize(("shape", "resolution"), [((100, 150), 100), ((90, 130), 192)])
def test_detection_frames_equal_controlnet_auxs(shape, resolution) -> None:
    resize = import_controlnet_aux("controlnet_aux.util").resize_image
    frame = picture(*shape)
    expected = resize(frame, resolution)
    np.testing.assert_array_equal(to_detection_size(frame, resolution), expected)


def test_grey_maps_become_rgb_of_the_frames_size() -> None:
    grey = picture(64, 128)[..., 0]
    assert to_frame_size(grey, 64, 128).shape == (64, 128, 3)
    np.testing.assert_array_equal(to_frame_size(grey, 64, 128)[..., 2], grey)
    assert to_frame_size(grey, 50, 70).shape == (50, 70, 3)


@pytest.mark.parametrize("kind", ["CannyDetector", "LineartStandardDetector"])
def test_edges_and_lines_equal_controlnet_auxs(kind: str) -> None:
    frame = picture(128, 192)
    sizes = {"detect_resolution": 128}
    if kind == "CannyDetector":
        sizes["image_resolution"] = 128
    expected = getattr(import_controlnet_aux(), kind)()(frame, output_type="np", **sizes)
    ours = canny_map(frame, low=100, high=200) if kind == "CannyDetector" else line_map(frame)
    assert 0 < (ours > 100).mean() < 0.3
    # controlnet_aux passes lines through a resize to the same size, which keeps them.
    np.testing.assert_array_equal(to_frame_size(ours, 128, 192), expected)


def test_a_warp_equals_controlnet_auxs_after_the_same_seed() -> None:
    frame = picture(192, 128)
    np.random.seed(7)
    shuffle = import_controlnet_aux().ContentShuffleDetector()
    expected = shuffle(frame, detect_resolution=128, image_resolution=128, output_type="np")
    np.testing.assert_array_equal(warp_map(frame, seed=7), expected)


def test_all_frames_of_a_seed_get_one_warp() -> None:
    columns = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (64, 128, 3)).copy()
    once = warp_map(columns, seed=1)
    np.random.seed(3)  # the global generator has no say
    np.testing.assert_array_equal(warp_map(columns, seed=1), once)
    opposite = 255 - warp_map(255 - columns, seed=1)
    np.testing.assert_allclose(opposite.astype(int), once.astype(int), atol=1)  # rounding of halves
    assert (warp_map(columns, seed=2) != once).mean() > 0.5


def test_a_flat_frame_has_neither_lines_nor_edges() -> None:
    flat = np.full((64, 64, 3), 120, np.uint8)
    assert not line_map(flat).any()
    assert not canny_map(flat, low=100, high=200).any()
