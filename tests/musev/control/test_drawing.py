"""Control drawings equal the original's pixels, and keep their meaning at small sizes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from musev.control.drawing import (
    COLORS,
    FACE_EYES,
    LIMBS,
    draw_body,
    draw_faces,
    draw_hands,
    draw_skeletons,
    limb_half_width,
)
from tests.goldens import GOLDENS, load_tensors, require_goldens

FOLDER = GOLDENS / "pipeline" / "functions" / "dwpose_draw"
CANVASES = {0: (256, 192), 1: (128, 320)}
# The original draws at its detection resolution (short side 128, both sides rounded to 64), then
# stretches the drawing.
DETECTION_CANVASES = {0: (192, 128), 1: (128, 320)}
NAMES = ("body", "body_hand", "body_hand_face", "eye", "face_only", "hand_only")


def golden_keypoints(case: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Recorded ``(bodies_NJ2, visible_NJ, hands_NK2, faces_NK2)``, fractions of the picture."""
    require_goldens()
    tensors = load_tensors(FOLDER / "keypoints.safetensors")
    subset = tensors[f"{case}.pose_subset"].numpy().astype(int)
    bodies = tensors[f"{case}.pose_candidate"].numpy()[np.maximum(subset, 0)]
    hands, faces = (tensors[f"{case}.pose_{part}"].numpy() for part in ("hands", "faces"))
    return bodies, subset >= 0, hands, faces


def read_golden(name: str) -> np.ndarray:
    return np.asarray(Image.open(FOLDER / name).convert("RGB"))


def draw_all(case: int, canvas_size: tuple[int, int], name: str) -> np.ndarray:
    bodies, visible, hands, faces = golden_keypoints(case)
    height, width = canvas_size
    to_pixels = np.array([width, height], np.float64)
    canvas = np.zeros((height, width, 3), np.uint8)
    if "only" not in name:
        canvas = draw_body(canvas, bodies * to_pixels, visible)
    if "hand" in name or name == "eye":
        canvas = draw_hands(canvas, hands * to_pixels)
    if "face" in name or name == "eye":
        points = faces[:, FACE_EYES] if name == "eye" else faces
        canvas = draw_faces(canvas, points * to_pixels)
    return canvas


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CANVASES)
def test_drawing_equals_the_pipelines(case: int, name: str) -> None:
    drawn = draw_all(case, CANVASES[case], name)
    suffix = "_expected_if_fixed" if "only" in name else ""
    np.testing.assert_array_equal(drawn, read_golden(f"{case}.{name}{suffix}.png"))


@pytest.mark.parity
@pytest.mark.parametrize("case", CANVASES)
def test_drawing_at_detection_size_then_stretched_equals_the_pipelines(case: int) -> None:
    drawn = draw_all(case, DETECTION_CANVASES[case], "body_hand_face")
    golden = read_golden(f"{case}.pose2map_dr128_ir192.png")
    stretched = cv2.resize(drawn, golden.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(stretched, golden)


def standing_person(height: int, width: int) -> np.ndarray:
    """Joints of someone who stands upright with arms away from the body, in pixels."""
    fractions = [
        *[(0.50, 0.14), (0.50, 0.25), (0.38, 0.26), (0.28, 0.40), (0.20, 0.52), (0.62, 0.26)],
        *[(0.72, 0.40), (0.80, 0.52), (0.43, 0.55), (0.42, 0.73), (0.41, 0.92), (0.57, 0.55)],
        *[(0.58, 0.73), (0.59, 0.92), (0.47, 0.11), (0.53, 0.11), (0.43, 0.12), (0.57, 0.12)],
    ]
    return np.array(fractions) * [width, height]


EVERYTHING = np.ones((1, 18), bool)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 96), (512, 512), (384, 256)])
def test_skeletons_resemble_the_exact_drawing_of_a_large_canvas(height: int, width: int) -> None:
    """Resized from 512 the original's drawing has the colours of ours nearly everywhere."""
    points = standing_person(height, width)
    ours = draw_skeletons(points[None], EVERYTHING, height=height, width=width)[0]
    scale = 512 / min(height, width)
    large = np.zeros((round(height * scale), round(width * scale), 3), np.uint8)
    half_width = round(limb_half_width(height, width) * scale)
    exact = draw_body(
        large, points[None] * scale, EVERYTHING, half_width=half_width, radius=half_width
    )
    resized = cv2.resize(exact, (width, height), interpolation=cv2.INTER_AREA)
    on = resized.max(axis=-1) > 100
    assert on.sum() > 100
    error = np.abs(ours.astype(float) - resized)[on].mean()
    unrelated = np.abs(ours[:, ::-1].astype(float) - resized)[on].mean()
    assert error < 0.35 * unrelated
    assert abs(int((ours.max(-1) > 100).sum()) - int(on.sum())) < 0.25 * on.sum()


def test_limb_width_follows_the_canvas_and_never_vanishes() -> None:
    assert limb_half_width(512, 512) == 4
    assert limb_half_width(1024, 2048) == 8
    assert limb_half_width(128, 128) == limb_half_width(64, 64) == 1.5


def test_skeletons_draw_only_visible_joints_and_limbs_with_both_ends() -> None:
    points = standing_person(256, 256)[None].repeat(2, axis=0)
    visible = np.zeros((2, 18), bool)
    visible[1, [4, 7]] = True  # two wrists share no limb
    first, second = draw_skeletons(points, visible, height=256, width=256)
    assert not first.any()
    ys, xs = np.nonzero(second.any(axis=-1))
    near = [np.hypot(xs - points[1, j, 0], ys - points[1, j, 1]) <= 3.5 for j in (4, 7)]
    assert near[0].any()
    assert near[1].any()
    assert (near[0] | near[1]).all()


def test_joint_centres_carry_their_colour() -> None:
    points = standing_person(256, 256)
    drawn = draw_skeletons(points[None], EVERYTHING, height=256, width=256)[0]
    for joint in (0, 4, 7, 10, 13, 16, 17):
        x, y = np.rint(points[joint]).astype(int)
        assert np.abs(drawn[y, x].astype(int) - COLORS[joint]).max() < 40


def test_skeletons_move_by_fractions_of_a_pixel() -> None:
    points = standing_person(128, 128)[None]
    here, nudged, moved = (
        draw_skeletons(points + shift, EVERYTHING, height=128, width=128)[0].astype(int)
        for shift in (0.0, 0.25, 1.0)
    )
    assert 0 < np.abs(nudged - here).sum() < 0.7 * np.abs(moved - here).sum()


def test_points_outside_the_canvas_are_cut_off_without_error() -> None:
    points = standing_person(128, 128)[None] * 3 - 128
    drawn = draw_skeletons(points, EVERYTHING, height=128, width=128)
    assert drawn.shape == (1, 128, 128, 3)
    assert drawn.any()


def test_tables_agree_with_each_other() -> None:
    assert len(set(COLORS)) == len(COLORS) == 18
    assert {joint for limb in LIMBS for joint in limb} == set(range(18))


def test_drawing_leaves_its_canvas_alone() -> None:
    canvas = np.full((128, 128, 3), 50, np.uint8)
    for draw in (
        lambda: draw_body(canvas, standing_person(128, 128)[None], EVERYTHING),
        lambda: draw_hands(canvas, np.full((1, 21, 2), 40.0)),
        lambda: draw_faces(canvas, np.full((1, 68, 2), 40.0)),
    ):
        assert (draw() != 50).any()
        assert (canvas == 50).all()
