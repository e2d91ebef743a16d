"""What people do: thirteen actions as smooth periodic motion of a pose.

Every action is a function of time alone (given the motion's random numbers), so a clip's first
frames do not depend on its length. Axes here: T frame, last axis 3; sides 0 right, 1 left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from musev.synthetic.people import Body, RandomStream
from musev.synthetic.skeleton import Pose, arm_directions, columns

TAU = 2 * np.pi
_IDLE_RATES_HZ = np.array([0.22, 0.3, 0.15, 0.2, 0.17, 0.25, 0.28])
_FORWARD_A_LITTLE = np.array([0.0, 0.0, 0.35])
_INWARD = np.array([-0.2, 0.1, 0.1])
_LOOSE_ELBOW = np.array([-0.05, 0.0, 0.12])


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How one person performs one action."""

    action: str
    rate_hz: float
    """Cycles a second."""
    offset: float
    """Where in the cycle time 0 falls, 0 to 1."""
    size: float
    """Amplitude relative to the average."""
    side: int
    """The hand, foot or direction that leads."""
    style: float
    """Picks between variants of one action, 0 to 1."""
    yaw: float
    """Turn of the body, radians."""
    close: bool
    """Whether a close camera films it: hands stay nearer to the head."""
    drift: tuple[float, ...]
    """Phases and rates of the small motion that never stops."""


@dataclass(frozen=True)
class Manner:
    """Ranges from which a motion is drawn."""

    rate_hz: tuple[float, float]
    turn: tuple[float, float]
    """How far the body turns away from the camera, radians; the direction is free."""
    headroom: float
    """How far the action reaches above the head, in body heights."""
    breadth: float = 0.46
    """Body heights that the picture must be wide to show the action."""


MANNERS = {
    "waving": Manner((0.9, 1.5), (0.0, 0.5), 0.03, 0.56),
    "walking": Manner((0.7, 1.05), (0.6, 1.25), 0.02),
    "jumping": Manner((0.6, 0.85), (0.0, 0.6), 0.2),
    "squatting": Manner((0.35, 0.6), (0.3, 1.1), 0.0),
    "dancing": Manner((0.7, 1.1), (0.0, 0.3), 0.1, 0.8),
    "clapping": Manner((0.9, 1.6), (0.0, 0.6), 0.0, 0.5),
    "raising": Manner((0.35, 0.6), (0.0, 0.4), 0.2, 0.8),
    "kicking": Manner((0.45, 0.75), (0.7, 1.25), 0.02),
    "turning": Manner((0.35, 0.6), (0.0, 0.3), 0.0),
    "leaning": Manner((0.35, 0.6), (0.0, 0.2), 0.0, 0.56),
    "bowing": Manner((0.35, 0.55), (0.5, 1.3), 0.0, 0.8),
    "pointing": Manner((0.3, 0.5), (0.0, 0.4), 0.0, 0.84),
    "standing": Manner((0.3, 0.5), (0.0, 0.6), 0.0),
}


def draw_motion(action: str, stream: RandomStream, *, close: bool = False) -> Motion:
    """Draw how an action is performed: speed, phase, size, side and direction.

    Args:
        action: A key of :data:`MANNERS`.
        stream: Where the numbers come from.
        close: Whether a close camera films it.

    Returns:
        The motion.
    """
    manner = MANNERS[action]
    return Motion(
        action=action,
        rate_hz=stream.uniform(*manner.rate_hz),
        offset=stream.uniform(),
        size=stream.uniform(0.85, 1.15),
        side=stream.pick((0, 1)),
        style=stream.uniform(),
        yaw=stream.uniform(*manner.turn) * stream.pick((-1, 1)),
        close=close,
        drift=tuple(stream.uniform() for _ in range(12)),
    )


def pose_at(motion: Motion, body: Body, times_T: np.ndarray) -> Pose:
    """Pose a person at the given times.

    Args:
        motion: Action and manner.
        body: Lengths of the person, for hands that meet and feet that stay on the ground.
        times_T: Seconds.

    Returns:
        The pose of every time: the action on top of breathing, swaying and looking about.
    """
    pose = Pose(len(times_T))
    pose.facing_T[:] = motion.yaw
    _idle(pose, motion, times_T)
    wobble = 0.12 * np.sin(TAU * (0.21 * times_T + motion.drift[0]))
    _ACTIONS[motion.action](
        pose, motion, body, TAU * (motion.rate_hz * times_T + motion.offset) + wobble
    )
    return pose


def _idle(pose: Pose, motion: Motion, times_T: np.ndarray) -> None:
    drift = np.array(motion.drift)
    rates = _IDLE_RATES_HZ * (0.8 + 0.4 * drift[1:8])
    sway, breath, look, nod, tilt, fore, upper = np.sin(
        TAU * (rates[:, None] * times_T + drift[1:8, None])
    )
    pose.root_T3[:, 0] += 0.006 * sway
    pose.torso_T3[:, 0] += 0.012 * breath
    pose.torso_T3[:, 1] += 0.02 * sway
    pose.head_T3[:, 0] += 0.1 * look + 0.12 * (drift[9] - 0.5)
    pose.head_T3[:, 1] += 0.04 * nod
    pose.head_T3[:, 2] += 0.05 * tilt + 0.08 * (drift[10] - 0.5)
    pose.fore_ST3[:, :, 2] += 0.04 * fore
    pose.upper_ST3[:, :, 0] += 0.02 * upper


def _smooth(values: np.ndarray) -> np.ndarray:
    """Clip to 0..1 with a soft start and stop."""
    clipped = np.clip(values, 0.0, 1.0)
    return clipped * clipped * (3 - 2 * clipped)


def _held(phase: np.ndarray, share: float, steepness: float = 1.6) -> np.ndarray:
    """From 0 to 1 and back once a cycle, resting at both ends; ``share`` of the cycle is high."""
    return _smooth(0.5 + steepness * (np.sin(phase) - np.cos(np.pi * share)) / 2)


def _mix(start: np.ndarray, end: np.ndarray, amount_T: np.ndarray) -> np.ndarray:
    return start + (end - start) * amount_T[:, None]


def _stand(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    if motion.style > 0.75:
        _hands_on_hips(pose, body)


def _hands_on_hips(pose: Pose, body: Body) -> None:
    below = 0.8 * body.spine
    wrist = columns(np.full(pose.num_frames, 0.03), -below, 0.05)
    upper, fore = arm_directions(body, wrist, (1.0, 0.0, -0.3))
    pose.upper_ST3[:], pose.fore_ST3[:] = upper, fore
    pose.palms[:] = [columns(np.full(pose.num_frames, -0.5), -0.7, 0.5)] * 2


def _wave(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    side, swing = motion.side, 0.5 * motion.size * np.sin(phase)
    height = -0.05 + 0.35 * motion.style
    out, height = (0.6, height - 0.75) if motion.close else (0.9, height)
    pose.upper_ST3[side] = columns(out, height + 0.06 * np.sin(phase), 0.25)
    tilt = (0.02 if motion.close else 0.12) + swing * (0.7 if motion.close else 1.0)
    pose.fore_ST3[side] = columns(np.sin(tilt), np.cos(tilt), 0.12)
    pose.hands[side] = "open"
    pose.head_T3[:, 2] += (0.1 if side else -0.1) * motion.style
    pose.mouth_T += 0.25


def _walk(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    stride = 0.125 * motion.size
    for side in (0, 1):
        step = phase + np.pi * side
        swing = np.cos(step)
        rising = np.maximum(-np.sin(step), 0.0)
        pose.feet_ST3[side] = columns(-0.025, 0.06 * rising**1.3, stride * swing - 0.01)
        pose.toes_ST[side] = 0.55 * np.maximum(-np.sin(step + 0.7), 0) * (swing < 0.6) * rising
        pose.upper_ST3[side] = columns(0.12, -1.0, -0.5 * motion.size * swing)
        pose.fore_ST3[side] = columns(0.02, -1.0, 0.42 - 0.5 * motion.size * swing)
    pose.root_T3[:, 1] += -0.022 + 0.01 * np.cos(2 * phase + np.pi)
    pose.torso_T3[:, 0] += 0.05
    pose.torso_T3[:, 2] += 0.12 * np.cos(phase)
    pose.head_T3[:, 0] -= 0.1 * np.cos(phase)


def _jump(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    part = (phase / TAU) % 1.0
    crouch = _smooth(part / 0.22) * _smooth((0.4 - part) / 0.12)
    landing = _smooth((part - 0.7) / 0.08) * _smooth((1.0 - part) / 0.18)
    air = np.clip((part - 0.4) / 0.32, 0.0, 1.0)
    height = 0.17 * motion.size * 4 * air * (1 - air)
    pose.root_T3[:, 1] += height - 0.085 * crouch - 0.06 * landing
    tuck = _smooth(4 * air * (1 - air))
    for side in (0, 1):
        pose.feet_ST3[side] = columns(0.012, height + 0.03 * tuck, -0.03 * tuck)
        pose.toes_ST[side] = 0.8 * tuck
        down = columns(0.3, -1.0, -0.35 * crouch)
        up = columns(0.5 + 0.3 * motion.style, 0.9, 0.2)
        throw = _smooth((part - 0.22) / 0.27) * _smooth((0.95 - part) / 0.32)
        pose.upper_ST3[side] = _arc(down, up, throw)
        pose.fore_ST3[side] = _arc(down + _FORWARD_A_LITTLE, up + _INWARD, throw)
        pose.hands[side] = "open"
    pose.torso_T3[:, 0] += 0.3 * crouch + 0.2 * landing
    pose.head_T3[:, 1] -= 0.15 * crouch
    pose.mouth_T += 0.6 * tuck


def _arc(start: np.ndarray, end: np.ndarray, amount_T: np.ndarray) -> np.ndarray:
    """Swing a direction from ``start`` to ``end`` the outward way, never through the body."""
    side = np.array([0.6, 0.0, 0.5])
    bow = (4 * amount_T * (1 - amount_T))[:, None]
    return _mix(start, end, amount_T) + bow * side


def _squat(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    depth = _held(phase, 0.5, 1.25) * (0.85 + 0.15 * motion.size)
    pose.root_T3 += columns(0.0, -0.2 * depth, -0.07 * depth)
    pose.torso_T3[:, 0] += 0.55 * depth
    pose.head_T3[:, 1] -= 0.35 * depth
    for side in (0, 1):
        pose.feet_ST3[side] += [0.035, 0.0, 0.0]
        ahead = columns(0.1, -0.05 + 0.5 * depth, 1.0)
        pose.upper_ST3[side] = _mix(pose.upper_ST3[side], ahead, depth)
        pose.fore_ST3[side] = _mix(pose.fore_ST3[side], ahead, depth)


def _dance(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    sway, beat = np.sin(phase), np.cos(2 * phase)
    pose.root_T3 += columns(0.045 * motion.size * sway, -0.035 + 0.022 * beat, 0.0)
    pose.torso_T3[:, 1] -= 0.16 * motion.size * sway
    pose.torso_T3[:, 2] += 0.25 * np.sin(phase + 0.6)
    pose.head_T3[:, 2] += 0.18 * sway
    for side in (0, 1):
        lead = sway if side else -sway
        lift = np.maximum(-lead, 0) ** 1.5
        pose.feet_ST3[side] = columns(0.03, 0.035 * lift, 0.0)
        pose.toes_ST[side] = 0.6 * lift
        if motion.style > 0.5:
            pose.upper_ST3[side] = columns(0.9, 0.15 + 0.55 * lead, 0.3)
            pose.fore_ST3[side] = columns(0.3 + 0.35 * lead, 0.95, 0.35)
        else:
            pose.upper_ST3[side] = columns(0.75, -0.55 + 0.25 * lead, 0.25)
            pose.fore_ST3[side] = columns(0.55 * lead, 0.55 + 0.4 * lead, 0.7)
        pose.hands[side] = "open"
    pose.mouth_T += 0.35


def _clap(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    gap = 0.018 + 0.14 * motion.size * (1 + np.cos(phase)) / 2
    height = -0.1 + 0.08 * motion.style
    wrist = columns(gap - body.shoulder_half, height, 0.165)
    upper, fore = arm_directions(body, wrist, (0.75, -1.0, -0.1))
    pose.upper_ST3[:] = upper
    pose.fore_ST3[:] = fore
    # Hands upright, so that palms meet and not finger tips.
    pose.palms[:] = [columns(0.02, np.full(pose.num_frames, 0.9), 0.45)] * 2
    pose.hands[:] = ["open", "open"]
    pose.mouth_T += 0.25


def _raise(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    angle = 0.2 + (2.45 + 0.3 * motion.style) * _held(phase, 0.55, 1.3)
    bend = 0.16 * np.sin(angle)
    for side in (0, 1):
        pose.upper_ST3[side] = columns(np.sin(angle), -np.cos(angle), 0.12)
        pose.fore_ST3[side] = columns(np.sin(angle + bend), -np.cos(angle + bend), 0.14)
        pose.hands[side] = "open"
    pose.head_T3[:, 1] -= 0.12 * _held(phase, 0.55)


def _kick(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    kicking, standing = motion.side, 1 - motion.side
    part = (phase / TAU) % 1.0
    back = _smooth(part / 0.25) * _smooth((0.46 - part) / 0.18)
    ahead = _smooth((part - 0.3) / 0.18) * _smooth((0.9 - part) / 0.32)
    height = 0.22 + 0.1 * motion.size
    pose.feet_ST3[kicking] = columns(
        -0.02, 0.1 * back + height * ahead, -0.15 * back + 0.34 * ahead
    )
    pose.toes_ST[kicking] = 0.6 * back - 0.5 * ahead
    pose.feet_ST3[standing][:, 0] -= 0.04
    pose.root_T3 += columns(0.0, -0.012 - 0.01 * back, 0.0)
    pose.root_T3[:, 0] += 0.02 if standing else -0.02
    pose.torso_T3[:, 0] += 0.12 * back - 0.24 * ahead
    pose.upper_ST3[kicking] = columns(0.5, -0.8, -0.5 * ahead + 0.3 * back)
    pose.upper_ST3[standing] = columns(0.6, -0.6, 0.6 * ahead - 0.4 * back)
    pose.fore_ST3[kicking] = columns(0.3, -0.8, 0.2 - 0.3 * ahead)
    pose.fore_ST3[standing] = columns(0.25, -0.3, 0.5 + 0.4 * ahead)


def _turn_head(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    look = 2 * _held(phase, 0.5, 1.4) - 1
    pose.head_T3[:, 0] += 0.85 * (0.8 + 0.2 * motion.size) * look
    pose.head_T3[:, 1] += 0.05 * (1 - look**2)
    pose.torso_T3[:, 2] += 0.1 * look
    if motion.style > 0.7:
        _hands_on_hips(pose, body)


def _lean(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    lean = np.sin(phase) * motion.size
    pose.torso_T3[:, 1] += 0.42 * lean
    pose.root_T3[:, 0] -= 0.03 * lean
    pose.head_T3[:, 2] += 0.12 * lean
    for side in (0, 1):
        pose.feet_ST3[side] += [0.03, 0.0, 0.0]
    if motion.style > 0.4:
        _hands_on_hips(pose, body)


def _bow(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    depth = _held(phase, 0.6, 1.2)
    pose.torso_T3[:, 0] += 1.0 * (0.85 + 0.15 * motion.size) * depth
    pose.head_T3[:, 1] += 0.12 * depth
    pose.root_T3[:, 2] -= 0.07 * depth
    for side in (0, 1):
        if motion.style > 0.5:
            hang = columns(0.12, -1.0, 0.75 * depth)
        else:
            hang = columns(0.14, -1.0, -0.05 * depth)
        pose.upper_ST3[side] = hang
        pose.fore_ST3[side] = hang + _LOOSE_ELBOW


def _point(pose: Pose, motion: Motion, body: Body, phase: np.ndarray) -> None:
    side, raised = motion.side, _held(phase, 0.75, 1.8)
    up = -0.05 + 0.6 * motion.style
    aim = columns(1.0, up + 0.04 * np.sin(2 * phase), 0.3)
    down_upper, down_fore = pose.upper_ST3[side].copy(), pose.fore_ST3[side].copy()
    bow = (4 * raised * (1 - raised))[:, None] * np.array([0.0, 0.1, 0.6])
    pose.upper_ST3[side] = _mix(down_upper, aim, raised)
    pose.fore_ST3[side] = _mix(down_fore, aim, raised) + bow
    pose.hands[side] = "point"
    pose.head_T3[:, 0] += (0.45 if side else -0.45) * raised


_ACTIONS: dict[str, Callable[[Pose, Motion, Body, np.ndarray], None]] = {
    "waving": _wave,
    "walking": _walk,
    "jumping": _jump,
    "squatting": _squat,
    "dancing": _dance,
    "clapping": _clap,
    "raising": _raise,
    "kicking": _kick,
    "turning": _turn_head,
    "leaning": _lean,
    "bowing": _bow,
    "pointing": _point,
    "standing": _stand,
}
