"""Actions move as their names say, smoothly, and each unlike the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from musev.synthetic.actions import MANNERS, Motion, draw_motion, pose_at
from musev.synthetic.people import ACTIONS, RandomStream, draw_body_lengths
from musev.synthetic.skeleton import CHEST, HAND, HEAD, solve

BODY = draw_body_lengths(RandomStream(1))
TIMES = np.arange(0, 6, 1 / 24)
SEEDS = range(4)


def motion_of(action: str, seed: int, **values: float) -> Motion:
    return dataclasses.replace(draw_motion(action, RandomStream(seed)), **values)


def joints_of(action: str, seed: int, **values: float) -> np.ndarray:
    motion = motion_of(action, seed, **values)
    return solve(BODY, pose_at(motion, BODY, TIMES)).points_TJ3


def test_every_action_has_a_manner() -> None:
    assert set(MANNERS) == set(ACTIONS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("action", ACTIONS)
def test_motion_is_finite_and_smooth(action: str, seed: int) -> None:
    """No joint jumps: none moves a fifth of the body in a twenty-fourth of a second."""
    points = joints_of(action, seed)
    assert np.isfinite(points).all()
    assert np.linalg.norm(np.diff(points, axis=0), axis=-1).max() < 1 / 5


@pytest.mark.parametrize("action", ACTIONS)
def test_feet_never_sink_into_the_ground(action: str) -> None:
    for seed in SEEDS:
        pose = pose_at(motion_of(action, seed), BODY, TIMES)
        assert pose.feet_ST3[..., 1].min() > -1e-9


def test_the_first_frames_do_not_depend_on_the_length() -> None:
    motion = motion_of("dancing", 3)
    long, short = pose_at(motion, BODY, TIMES), pose_at(motion, BODY, TIMES[:12])
    np.testing.assert_array_equal(long.upper_ST3[:, :12], short.upper_ST3)
    np.testing.assert_array_equal(long.torso_T3[:12], short.torso_T3)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_each_action_does(seed: int) -> None:
    """The joint that makes an action recognisable moves as far as the word promises."""

    def travel(action: str, joint: int, axis: int) -> float:
        return float(np.ptp(joints_of(action, seed, yaw=0.0)[:, joint, axis]))

    assert travel("jumping", 1, 1) > 0.18
    assert travel("squatting", 1, 1) > 0.15
    assert travel("bowing", HEAD, 1) > 0.12
    assert travel("leaning", HEAD, 0) > 0.15
    assert min(travel("raising", joint, 1) for joint in (4, 7)) > 0.35
    assert travel("standing", 1, 1) < 0.02
    ankles = [travel("kicking", joint, 1) for joint in (10, 13)]
    assert max(ankles) > 0.18 > 0.06 > min(ankles)
    assert min(travel("walking", joint, 2) for joint in (10, 13)) > 0.15
    wrists = [travel("waving", joint, 0) for joint in (4, 7)]
    assert max(wrists) > 0.07 > 0.06 > min(wrists)


@pytest.mark.parametrize("seed", SEEDS)
def test_clapping_hands_meet_in_front_of_the_chest_and_part(seed: int) -> None:
    points = joints_of("clapping", seed, yaw=0.0)
    gap = np.linalg.norm(points[:, HAND] - points[:, HAND + 1], axis=-1)
    assert gap.min() < 0.07
    assert gap.max() > 0.18
    assert (points[:, [4, 7], 2] > points[:, [CHEST], 2]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_waving_hand_is_above_its_elbow_and_open(seed: int) -> None:
    motion = motion_of("waving", seed)
    wrist = 4 + 3 * motion.side
    points = joints_of("waving", seed)
    assert (points[:, wrist, 1] > points[:, wrist - 1, 1] + 0.05).all()
    assert pose_at(motion, BODY, TIMES).hands[motion.side] == "open"


def test_turning_moves_the_head_and_not_the_feet() -> None:
    pose = pose_at(motion_of("turning", 2), BODY, TIMES)
    assert np.ptp(pose.head_T3[:, 0]) > 1.2
    assert not pose.feet_ST3.any()


def test_motions_of_one_action_differ() -> None:
    motions = [draw_motion("walking", RandomStream(seed)) for seed in range(50)]
    assert np.ptp([m.rate_hz for m in motions]) > 0.2
    assert np.ptp([m.offset for m in motions]) > 0.8
    assert {m.side for m in motions} == {0, 1}
    assert {np.sign(m.yaw) for m in motions} == {-1, 1}
