"""Faces are outlined in the colours the ControlNet learned, where they are in the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from musev.control.face_maps import (
    MIN_FACE_PX,
    FaceMeshDetector,
    describe_face_mesh,
    draw_face_mesh,
)
from musev.control.pose_embedded import find_models, import_mediapipe
from musev.errors import WeightsError

PORTRAIT = Path(__file__).parents[4] / "shared" / "media" / "Mona_Lisa.jpg"
GREEN, LEFT, RIGHT = (10, 200, 10), (10, 200, 180), (180, 200, 10)


@pytest.fixture(scope="module")
def _installed() -> None:
    try:
        find_models()
        import_mediapipe()
    except WeightsError as error:
        pytest.skip(str(error))


def has(map_YXC: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((map_YXC == color).all(axis=2).any())


@pytest.mark.usefixtures("_installed")
def test_a_portraits_face_is_outlined_where_it_is() -> None:
    if not PORTRAIT.is_file():
        pytest.skip(f"no {PORTRAIT}")
    picture = Image.open(PORTRAIT).convert("RGB")
    picture.thumbnail((512, 768))
    frames = np.stack([np.asarray(picture), np.zeros((picture.height, picture.width, 3), np.uint8)])
    detector = FaceMeshDetector({})
    maps_TYXC = detector.maps(frames)
    assert not maps_TYXC[1].any()
    rows, columns = np.nonzero(maps_TYXC[0].any(axis=2))
    height, width = frames.shape[1:3]
    # Her face spans these shares of the picture (looked up by eye).
    assert 0.14 < rows.min() / height < 0.22
    assert 0.30 < rows.max() / height < 0.40
    assert 0.32 < columns.min() / width < 0.42
    assert 0.55 < columns.max() / width < 0.65
    np.testing.assert_array_equal(detector.maps(frames[:1])[0], maps_TYXC[0])


@pytest.mark.usefixtures("_installed")
def test_outlines_have_their_colours_and_small_faces_are_left_out() -> None:
    points = np.random.default_rng(0).uniform(0.2, 0.8, (478, 2))
    canvas = np.zeros((256, 256, 3), np.uint8)
    draw_face_mesh(canvas, points)
    assert has(canvas, GREEN)
    assert has(canvas, LEFT)
    assert has(canvas, RIGHT)
    x, y = (points[468] * 256).astype(int)
    np.testing.assert_array_equal(canvas[y, x], (250, 200, 10))
    small = np.zeros((256, 256, 3), np.uint8)
    draw_face_mesh(small, points * (MIN_FACE_PX - 8) / 256)
    assert not small.any()


@pytest.mark.usefixtures("_installed")
def test_lines_to_points_outside_are_left_out() -> None:
    canvas = np.zeros((128, 128, 3), np.uint8)
    draw_face_mesh(canvas, np.random.default_rng(0).uniform(1.1, 2.0, (478, 2)))
    assert not canvas.any()


@pytest.mark.usefixtures("_installed")
def test_the_description_names_model_and_library() -> None:
    told = describe_face_mesh({})
    assert told["weights face_landmarker.task"].startswith("sha256:64184e22")
    assert told["mediapipe"]


def test_a_folder_without_the_model_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not hold .*face_landmarker\.task"):
        FaceMeshDetector({"face_detector": str(tmp_path)})
