"""The 133 points end up where the original's recorded conversion puts them."""

from __future__ import annotations

import numpy as np
import pytest

from musev.control.wholebody import NUM_POINTS, people_from_wholebody
from tests.goldens import GOLDENS, load_tensors, require_goldens

# COCO-WholeBody's names, in its order.
COCO = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder"),
    *("right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip"),
    *("right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)


def numbered(num_people: int) -> tuple[np.ndarray, np.ndarray]:
    """Point p of person n at pixel (p, 10 n), all sure."""
    points = np.zeros((num_people, NUM_POINTS, 2))
    points[..., 0] = np.arange(NUM_POINTS)
    points[..., 1] = 10 * np.arange(num_people)[:, None]
    return points, np.ones((num_people, NUM_POINTS))


def test_every_joint_gets_the_point_of_its_name() -> None:
    from musev.control.drawing import JOINTS

    points, sure = numbered(2)
    people = people_from_wholebody(points, sure, height=100, width=200)
    for n, person in enumerate(people):
        for k, joint in enumerate(JOINTS):
            x = 5.5 if joint == "neck" else COCO.index(joint)
            np.testing.assert_allclose(person.body_K3[k], [x / 200, n / 10, 1], atol=1e-6)
        np.testing.assert_allclose(person.face_K3[:, 0] * 200, np.arange(23, 91), atol=1e-4)
        np.testing.assert_allclose(person.left_hand_K3[:, 0] * 200, np.arange(91, 112), atol=1e-4)
        np.testing.assert_allclose(person.right_hand_K3[:, 0] * 200, np.arange(112, 133), atol=1e-4)


def test_a_neck_is_as_sure_as_its_less_sure_shoulder_and_scores_are_clipped() -> None:
    points, sure = numbered(1)
    sure[0, 5], sure[0, 6], sure[0, 0] = 0.9, 0.2, 1.7
    (person,) = people_from_wholebody(points, sure, height=10, width=10)
    assert person.body_K3[1, 2] == np.float32(0.2)
    assert person.body_K3[0, 2] == 1.0


def test_nobody_gives_nobody() -> None:
    assert people_from_wholebody(*numbered(0), height=10, width=10) == ()


@pytest.mark.parity
@pytest.mark.parametrize("case", [0, 1])
def test_a_detectors_points_and_the_recorded_pose_agree(case: int) -> None:
    """The recorded 134 points hold the 133 in another order; put back, they must come out again."""
    require_goldens()
    tensors = load_tensors(GOLDENS / "pipeline/functions/dwpose_draw/keypoints.safetensors")
    recorded, scores = tensors[f"{case}.candidate"].numpy(), tensors[f"{case}.score"].numpy()
    openpose = [0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    points = np.zeros((len(recorded), NUM_POINTS, 2))
    sure = np.zeros((len(recorded), NUM_POINTS))
    for target, source in ((points, recorded), (sure, scores)):
        target[:, openpose] = np.delete(source[:, :18], 1, axis=1)
        target[:, 17:] = source[:, 18:]
    people = people_from_wholebody(points, sure, height=1, width=1)
    subset = tensors[f"{case}.pose_subset"].numpy()
    for n, person in enumerate(people):
        joints = [k for k in range(18) if k != 1]
        np.testing.assert_allclose(person.body_K3[joints, :2], recorded[n, joints], atol=1e-6)
        np.testing.assert_array_equal(person.body_K3[joints, 2] > 0.3, subset[n, joints] >= 0)
        hands = tensors[f"{case}.pose_hands"].numpy()
        for row, part in ((n, "left_hand"), (len(people) + n, "right_hand")):
            seen = person.part(part)[:, 2] >= 0.3
            np.testing.assert_allclose(person.part(part)[seen, :2], hands[row][seen], atol=1e-6)
            assert (hands[row][~seen] == -1).all()
