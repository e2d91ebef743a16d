"""Joints in space: lengths kept, sides right, the camera where it should be."""

from __future__ import annotations

import numpy as np
import pytest

from musev.synthetic.people import RandomStream, draw_body_lengths
from musev.synthetic.skeleton import (
    HEAD,
    Pose,
    arm_directions,
    join_poses,
    rotation,
    solve,
    two_bones,
    unit,
)

BODY = draw_body_lengths(RandomStream(1))


def random_pose(seed: int, frames: int = 6) -> Pose:
    rng = np.random.default_rng(seed)
    pose = Pose(frames)
    pose.facing_T[:] = rng.uniform(-3, 3, frames)
    pose.torso_T3[:] = rng.uniform(-0.6, 0.6, (frames, 3))
    pose.upper_ST3[:] = rng.normal(size=(2, frames, 3))
    pose.fore_ST3[:] = rng.normal(size=(2, frames, 3))
    pose.feet_ST3[:] = rng.uniform(-0.1, 0.1, (2, frames, 3))
    pose.root_T3[:, 1] = -0.05
    return pose


@pytest.mark.parametrize("seed", range(4))
def test_bones_keep_their_lengths_in_every_pose(seed: int) -> None:
    points = solve(BODY, random_pose(seed)).points_TJ3
    bones = {
        (2, 3): BODY.upper_arm,
        (3, 4): BODY.forearm,
        (5, 6): BODY.upper_arm,
        (6, 7): BODY.forearm,
        (8, 9): BODY.thigh,
        (9, 10): BODY.shin,
        (11, 12): BODY.thigh,
        (12, 13): BODY.shin,
    }
    for (start, end), length in bones.items():
        measured = np.linalg.norm(points[:, end] - points[:, start], axis=-1)
        np.testing.assert_allclose(measured, length, atol=1e-6)


def test_a_person_facing_the_camera_has_their_right_on_the_pictures_left() -> None:
    points = solve(BODY, Pose(1)).points_TJ3[0]
    for right, left in ((2, 5), (4, 7), (8, 11), (10, 13)):
        assert points[right, 0] < -0.02 < 0.02 < points[left, 0]
    assert points[HEAD, 1] > points[1, 1] > points[8, 1] > points[9, 1] > points[10, 1]


def test_turning_to_the_left_brings_the_right_side_forwards() -> None:
    pose = Pose(1)
    pose.facing_T[:] = 1.0
    points = solve(BODY, pose).points_TJ3[0]
    assert points[2, 2] > points[5, 2] + 0.05


def test_feet_stay_where_they_are_while_the_pelvis_moves() -> None:
    pose = Pose(8)
    pose.root_T3[:, 1] = -np.linspace(0, 0.15, 8)
    ankles = solve(BODY, pose).points_TJ3[:, [10, 13]]
    np.testing.assert_allclose(ankles, np.broadcast_to(ankles[-1:], ankles.shape), atol=2e-3)


def test_knees_bend_forwards() -> None:
    pose = Pose(1)
    pose.root_T3[:, 1] = -0.15
    points = solve(BODY, pose).points_TJ3[0]
    assert points[9, 2] > points[8, 2] + 0.05
    assert points[12, 2] > points[11, 2] + 0.05


def test_two_bones_reach_their_target_or_stretch_towards_it() -> None:
    start, pole = np.zeros((2, 3)), np.array([0.0, 0.0, 1.0])
    targets = np.array([[0.1, -0.2, 0.05], [0.0, -9.0, 0.0]])
    _, ends = two_bones(start, targets, 0.15, 0.15, np.broadcast_to(pole, (2, 3)))
    np.testing.assert_allclose(ends[0], targets[0], atol=1e-9)
    np.testing.assert_allclose(unit(ends[1]), [0, -1, 0], atol=1e-9)
    assert np.linalg.norm(ends[1]) == pytest.approx(0.3, abs=1e-3)


def test_arm_directions_bring_the_wrist_to_its_place() -> None:
    wrist = np.array([[-0.08, -0.1, 0.16], [0.05, 0.1, 0.1]])
    upper, fore = arm_directions(BODY, wrist, (0.7, -1.0, 0.0))
    np.testing.assert_allclose(upper * BODY.upper_arm + fore * BODY.forearm, wrist, atol=1e-9)


def test_rotations_are_right_handed_and_proper() -> None:
    for axis in range(3):
        matrix = rotation(axis, np.array([np.pi / 2, 0.3]))
        np.testing.assert_allclose(
            matrix @ matrix.transpose(0, 2, 1), np.eye(3)[None].repeat(2, 0), atol=1e-12
        )
        turned = matrix[0] @ np.eye(3)[(axis + 1) % 3]
        np.testing.assert_allclose(turned, np.eye(3)[(axis + 2) % 3], atol=1e-12)


def test_joined_poses_solve_to_the_same_joints_as_apart() -> None:
    first, second = random_pose(1, 3), random_pose(2, 2)
    second.palms[0] = np.tile([0.0, 1.0, 0.2], (2, 1))
    joined = solve(BODY, join_poses(first, second)).points_TJ3
    apart = np.concatenate([solve(BODY, pose).points_TJ3 for pose in (first, second)])
    np.testing.assert_allclose(joined, apart, atol=1e-12)
