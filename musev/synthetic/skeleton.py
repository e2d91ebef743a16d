"""A pose in angles and directions to joints in space, as the camera sees them.

Axes here: T frame, S side (0 the person's right, 1 left), J joint (OpenPose body 18), last axis 3.
Lengths are fractions of the body's height. Body space: x to the person's left, y up, z forwards.
View space: x right in the picture, y up, z towards the camera; a person who faces the camera has
their left on the picture's right. Directions of limbs are (outwards, up, forwards), mirrored for
the two sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from musev.synthetic.people import Body

SIDES = np.array([-1.0, 1.0])
MIRROR = np.array([[[-1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]]])
"""``(S, 1, 3)``: outwards to the person's left."""
CAMERA_PITCH = 0.14
"""The camera looks down a little (radians), so that feet and ground read as a floor."""
ARM_DOWN = (0.16, -1.0, 0.04)
FOREARM_DOWN = (0.06, -1.0, 0.16)
STANCE = 0.062
"""Ankles stand this far out from the middle."""
FOOT = 0.075


@dataclass
class Pose:
    """What an action sets, frame by frame; a new one stands still with its arms down."""

    num_frames: int
    root_T3: np.ndarray = field(init=False)
    """Pelvis away from where it stands, body space."""
    facing_T: np.ndarray = field(init=False)
    """Turn of the whole body towards the person's left, radians; 0 faces the camera."""
    torso_T3: np.ndarray = field(init=False)
    """Trunk: bend forwards, bend to the person's left, twist; radians."""
    head_T3: np.ndarray = field(init=False)
    """Head on the trunk: turn to the person's left, nod down, tilt to the left; radians."""
    upper_ST3: np.ndarray = field(init=False)
    fore_ST3: np.ndarray = field(init=False)
    """Directions of the upper arms and forearms in the trunk's space; any length."""
    feet_ST3: np.ndarray = field(init=False)
    """Ankles away from where they stand (outwards, up, forwards)."""
    toes_ST: np.ndarray = field(init=False)
    """How far toes point down, radians."""
    mouth_T: np.ndarray = field(init=False)
    """How far the mouth is open, 0 to 1."""
    palms: list[np.ndarray | None] = field(default_factory=lambda: [None, None])
    """Direction of each hand, as the arms'; None goes on along the forearm."""
    hands: list[str] = field(default_factory=lambda: ["relaxed", "relaxed"])
    """Each hand's shape: relaxed, open or point."""

    def __post_init__(self) -> None:
        frames = self.num_frames
        self.root_T3 = np.zeros((frames, 3))
        self.facing_T = np.zeros(frames)
        self.torso_T3 = np.zeros((frames, 3))
        self.head_T3 = np.zeros((frames, 3))
        self.upper_ST3 = np.empty((2, frames, 3))
        self.upper_ST3[:] = ARM_DOWN
        self.fore_ST3 = np.empty((2, frames, 3))
        self.fore_ST3[:] = FOREARM_DOWN
        self.feet_ST3 = np.zeros((2, frames, 3))
        self.toes_ST = np.zeros((2, frames))
        self.mouth_T = np.zeros(frames)


WAIST, PELVIS, CHEST, HEAD, HAND, HEEL, TOE = 18, 19, 20, 21, 22, 24, 26
"""Places after the 18 joints: the chest lies a little below the neck, HEAD is the skull's centre,
HAND the finger tips; the last three have two places, right and left."""
NUM_PLACES = 28


def join_poses(first: Pose, second: Pose) -> Pose:
    """One pose after the other in time; the hands' shapes are the first's."""
    joined = Pose(first.num_frames + second.num_frames)
    for name in ("root_T3", "facing_T", "torso_T3", "head_T3", "mouth_T"):
        setattr(joined, name, np.concatenate([getattr(first, name), getattr(second, name)]))
    for name in ("upper_ST3", "fore_ST3", "feet_ST3", "toes_ST"):
        both = (getattr(first, name), getattr(second, name))
        setattr(joined, name, np.concatenate(both, axis=1))
    for side in (0, 1):
        parts = [
            pose.fore_ST3[side] if pose.palms[side] is None else pose.palms[side]
            for pose in (first, second)
        ]
        joined.palms[side] = np.concatenate(parts)
    joined.hands = list(first.hands)
    return joined


@dataclass(frozen=True)
class Joints:
    """Where everything is, in view space."""

    points_TJ3: np.ndarray
    """The 18 joints (nose, eyes and ears left to the head's drawing), then the other places."""
    turn_T33: np.ndarray
    """Rotation of the head: columns are its left, up and front in view space."""


def rotation(axis: int, angle_T: np.ndarray) -> np.ndarray:
    """Rotation matrices about one axis (0 x, 1 y, 2 z), right-handed, ``(T, 3, 3)``."""
    cos, sin = np.cos(angle_T), np.sin(angle_T)
    matrix = np.zeros((len(cos), 9))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, 4 * axis] = 1
    matrix[:, 4 * first] = matrix[:, 4 * second] = cos
    matrix[:, 3 * first + second] = -sin
    matrix[:, 3 * second + first] = sin
    return matrix.reshape(-1, 3, 3)


def columns(*parts: np.ndarray | float) -> np.ndarray:
    """Parts side by side along a new last axis; what is smaller than the largest is repeated.

    A quick ``np.stack``: a clip is hundreds of tiny arrays, and their overhead is its cost.
    """
    shape: tuple[int, ...] = ()
    for part in parts:
        if isinstance(part, np.ndarray) and part.ndim > len(shape):
            shape = part.shape
    joined = np.empty((*shape, len(parts)))
    for column, part in enumerate(parts):
        joined[..., column] = part
    return joined


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1 along the last axis."""
    return vectors / (np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True)) + 1e-9)


def two_bones(
    start_T3: np.ndarray, target_T3: np.ndarray, first: float, second: float, pole_T3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Place the middle joint and the end of a limb that reaches for a target.

    Args:
        start_T3: Where the limb begins.
        target_T3: Where its end should be; beyond reach it stretches towards it.
        first: Length of the first bone.
        second: Length of the second bone.
        pole_T3: The direction in which the middle joint bends.

    Returns:
        ``(middle_T3, end_T3)``.
    """
    offset = target_T3 - start_T3
    reach = (first + second) * 0.998
    length = np.sqrt((offset * offset).sum(axis=-1, keepdims=True)) + 1e-9
    distance = np.minimum(np.maximum(length, abs(first - second)), reach)
    along = offset / length
    projection = (first**2 - second**2 + distance**2) / (2 * np.maximum(distance, 1e-6))
    height = np.sqrt(np.maximum(first**2 - projection**2, 0.0))
    bend = unit(pole_T3 - (pole_T3 * along).sum(-1, keepdims=True) * along)
    return start_T3 + along * projection + bend * height, start_T3 + along * distance


def arm_directions(body: Body, wrist_T3: np.ndarray, pole: tuple[float, float, float]) -> tuple:
    """Directions of upper arm and forearm that bring a wrist to a place.

    Args:
        body: Lengths of the arm.
        wrist_T3: Wrist seen from the shoulder (outwards, up, forwards).
        pole: Where the elbow goes (outwards, up, forwards).

    Returns:
        ``(upper_T3, fore_T3)``, unit vectors for :class:`Pose`.
    """
    zero = np.zeros_like(wrist_T3)
    toward = np.broadcast_to(np.array(pole), wrist_T3.shape)
    elbow, wrist = two_bones(zero, wrist_T3, body.upper_arm, body.forearm, toward)
    return unit(elbow), unit(wrist - elbow)


def solve(body: Body, pose: Pose) -> Joints:
    """Place every joint of a pose and turn it into the camera's view.

    Args:
        body: Lengths of the person.
        pose: Angles and directions of every frame.

    Returns:
        The joints in view space; the ground under the person is at height 0 before the camera's
        pitch.
    """
    pelvis, waist, neck, trunk = _spine(body, pose)
    shoulders, elbows, wrists, tips = _arms(body, pose, neck, trunk)
    hips, knees, ankles, heels, toes = _legs(body, pose, pelvis)

    turn = rotation(1, pose.facing_T)
    view = rotation(0, np.full(pose.num_frames, CAMERA_PITCH)) @ turn
    yaw_T, nod_T, tilt_T = pose.head_T3.T
    skull = trunk @ rotation(1, yaw_T) @ rotation(0, nod_T) @ rotation(2, -tilt_T)
    middle = neck + _apply(skull, np.array([0.0, body.neck, 0.012]))

    points = np.zeros((pose.num_frames, NUM_PLACES, 3))
    points[:, 1] = neck
    for side, first in ((0, 2), (1, 5)):
        points[:, first] = shoulders[side]
        points[:, first + 1] = elbows[side]
        points[:, first + 2] = wrists[side]
        points[:, first + 6] = hips[side]
        points[:, first + 7] = knees[side]
        points[:, first + 8] = ankles[side]
        points[:, HAND + side] = tips[side]
        points[:, HEEL + side] = heels[side]
        points[:, TOE + side] = toes[side]
    points[:, WAIST] = waist
    points[:, PELVIS] = pelvis
    points[:, CHEST] = neck - 0.03 * trunk[:, :, 1]
    points[:, HEAD] = middle
    return Joints(points_TJ3=_apply(view[:, None], points), turn_T33=view @ skull)


def _apply(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return (matrix @ vectors[..., None])[..., 0]


def _spine(body: Body, pose: Pose) -> tuple[np.ndarray, ...]:
    bend_T, side_T, twist_T = pose.torso_T3.T
    pelvis = np.array([0.0, body.hip_height, 0.0]) + pose.root_T3
    lower = rotation(1, 0.3 * twist_T) @ rotation(2, -0.35 * side_T) @ rotation(0, 0.5 * bend_T)
    trunk = rotation(1, twist_T) @ rotation(2, -side_T) @ rotation(0, bend_T)
    waist = pelvis + _apply(lower, np.array([0.0, 0.32 * body.spine, 0.0]))
    neck = waist + _apply(trunk, np.array([0.0, 0.68 * body.spine, 0.0]))
    return pelvis, waist, neck, trunk


def _arms(body: Body, pose: Pose, neck: np.ndarray, trunk: np.ndarray) -> tuple[np.ndarray, ...]:
    """Shoulders, elbows, wrists and finger tips, ``(S, T, 3)`` in body space."""
    upper, fore = unit(pose.upper_ST3), unit(pose.fore_ST3)
    # A raised arm lifts its shoulder and draws it in.
    lift = np.clip(upper[..., 1] + 0.2, 0, 1)
    local = columns(body.shoulder_half - 0.008 * lift, -0.012 + 0.018 * lift, 0.0)
    shoulders = neck + _apply(trunk, local * MIRROR)
    elbows = shoulders + body.upper_arm * _apply(trunk, upper * MIRROR)
    wrists = elbows + body.forearm * _apply(trunk, fore * MIRROR)
    palms = np.array([f if p is None else unit(p) for f, p in zip(fore, pose.palms, strict=True)])
    tips = wrists + 0.052 * _apply(trunk, palms * MIRROR)
    return shoulders, elbows, wrists, tips


def _legs(body: Body, pose: Pose, pelvis: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hips, knees, ankles, heels and toes, ``(S, T, 3)`` in body space."""
    frames = pose.num_frames
    _, side_T, twist_T = pose.torso_T3.T
    tilt = rotation(1, 0.3 * twist_T) @ rotation(2, -0.3 * side_T)
    outward = SIDES[:, None, None] * np.array([1.0, 0.0, 0.0])
    hips = pelvis + _apply(tilt, np.broadcast_to(outward * body.hip_half, (2, frames, 3)))
    rest = np.array([STANCE, body.ankle, 0.0])
    targets = (rest + pose.feet_ST3) * MIRROR
    pole = np.array([0.28, 0.0, 1.0]) * MIRROR
    knees, ankles = two_bones(hips, targets, body.thigh, body.shin, pole)
    cos, sin = np.cos(pose.toes_ST), np.sin(pose.toes_ST)
    forward = columns(0.3 * cos, -sin, cos) * MIRROR
    down = columns(0.0, -cos, -sin) * MIRROR
    soles = ankles + 0.45 * body.ankle * down
    return hips, knees, ankles, soles - 0.018 * forward, soles + FOOT * forward
