"""An endless source of clips of drawn people: a pure function of a seed and a number.

Axes here: T frame, J joint (OpenPose body 18), Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from musev.control.drawing import draw_skeletons
from musev.synthetic.actions import MANNERS, Motion, draw_motion, pose_at
from musev.synthetic.captions import draw_caption
from musev.synthetic.figure import build_figure
from musev.synthetic.head import Face
from musev.synthetic.people import (
    FRAMINGS,
    Attributes,
    Color,
    Person,
    RandomStream,
    draw_attributes,
    draw_person,
    is_held_out,
)
from musev.synthetic.scenes import draw_neutral, draw_scene
from musev.synthetic.shapes import SHADOW, Camera, Figure, Shape, circle, fills_of, fixed, paint
from musev.synthetic.skeleton import CAMERA_PITCH, Joints, join_poses, solve

DEFAULT_SIZE_PX = 128
DEFAULT_NUM_FRAMES = 12
DEFAULT_FPS = 8.0
_REFERENCE_WEIGHTS = {"full": 0.2, "half": 0.5, "portrait": 0.3}
# Every purpose has a stream of its own: a change of one draw leaves the others as they were.
_ATTRIBUTES, _PERSON, _MOTION, _CAMERA, _SCENE, _CAPTION, _REFERENCE = range(7)


@dataclass(frozen=True)
class Clip:
    """One clip with everything that is known about it."""

    seed: int
    index: int
    attributes: Attributes
    caption: str
    frames_TYXC: np.ndarray
    """uint8 RGB."""
    control_TYXC: np.ndarray
    """uint8 RGB: the OpenPose drawing of every frame."""
    points_TJ2: np.ndarray
    """float32 (x, y) in pixels; may lie outside the picture."""
    visible_TJ: np.ndarray
    """bool: inside the picture and, on the head, on the side that faces the camera."""
    mask_TYX: np.ndarray
    """uint8: 255 where the person is."""
    reference_YXC: np.ndarray
    """uint8 RGB: the same person in another pose and framing, on a plain backdrop."""
    reference_framing: str


@dataclass(frozen=True)
class Joints2D:
    """Where a clip's joints are, and its caption: a clip without its pictures."""

    caption: str
    attributes: Attributes
    points_TJ2: np.ndarray
    """float32 (x, y) in pixels; may lie outside the picture."""
    facing_TJ: np.ndarray
    """bool: on the side that faces the camera; those are drawn, inside the picture or not."""


def plan_clip(seed: int, index: int, *, held_out: bool = False) -> Attributes:
    """Choose a clip's attributes: never a held-out combination, or nothing else.

    Args:
        seed: Which endless source.
        index: Which clip of it.
        held_out: False for training, True for evaluation.

    Returns:
        The first of the clip's own sequence of draws that is allowed.
    """
    stream = RandomStream(seed, index, _ATTRIBUTES, int(held_out))
    attributes = draw_attributes(stream)
    while is_held_out(attributes) != held_out:
        attributes = draw_attributes(stream)
    return attributes


def draw_clip(
    seed: int,
    index: int,
    *,
    held_out: bool = False,
    attributes: Attributes | None = None,
    height: int = DEFAULT_SIZE_PX,
    width: int = DEFAULT_SIZE_PX,
    num_frames: int = DEFAULT_NUM_FRAMES,
    fps: float = DEFAULT_FPS,
) -> Clip:
    """Draw one clip; the same arguments give the same bytes, whatever was drawn before.

    Frames do not depend on ``num_frames``: a longer clip begins with the shorter one.

    Args:
        seed: Which endless source.
        index: Which clip of it.
        held_out: Draw from the combinations kept from training, instead of from all others.
        attributes: Draw these instead of choosing; ``held_out`` then has no say.
        height: Rows of a frame.
        width: Columns of a frame.
        num_frames: Length.
        fps: Frames a second of the motion.

    Returns:
        Frames, drawings, keypoints, mask, reference, caption and attributes.
    """
    chosen = attributes or plan_clip(seed, index, held_out=held_out)

    def stream(purpose: int) -> RandomStream:
        return RandomStream(seed, index, purpose)

    person = draw_person(chosen, stream(_PERSON))
    size = {"height": height, "width": width}
    shot = draw_shot(chosen.framing, chosen.action, stream(_CAMERA), stream(_MOTION), **size)
    reference_stream = stream(_REFERENCE)
    weights = [_REFERENCE_WEIGHTS[f] * (f != chosen.framing) for f in FRAMINGS]
    other = reference_stream.pick(FRAMINGS, weights)
    reference = draw_shot(other, "standing", reference_stream, reference_stream, **size)
    scene, shadow = draw_scene(chosen.scene, chosen.framing, stream(_SCENE), **size)
    times_T = np.arange(num_frames) / fps
    figure = _pose_both(person, shot, reference, times_T, shadow, height)
    frames_TYXC, mask_TYX = _paint_over(scene, draw_neutral(**size), figure)
    points, facing = figure.points_TJ2[:num_frames], figure.visible_TJ[:num_frames]
    inside = ((points > -0.5) & (points < np.array([width, height]) - 0.5)).all(axis=-1)
    return Clip(
        seed=seed,
        index=index,
        attributes=chosen,
        caption=draw_caption(chosen, stream(_CAPTION)),
        frames_TYXC=frames_TYXC[:num_frames],
        control_TYXC=draw_skeletons(points, facing, **size),
        points_TJ2=points.astype(np.float32),
        visible_TJ=facing & inside,
        mask_TYX=mask_TYX[:num_frames],
        reference_YXC=frames_TYXC[num_frames],
        reference_framing=other,
    )


def draw_joints(
    seed: int,
    index: int,
    *,
    held_out: bool = False,
    num_frames: int = DEFAULT_NUM_FRAMES,
    fps: float = DEFAULT_FPS,
) -> Joints2D:
    """Draw the joints of one clip of the default size and paint nothing, which is faster.

    Args:
        seed: Which endless source.
        index: Which clip of it.
        held_out: As in :func:`draw_clip`.
        num_frames: Length.
        fps: Frames a second of the motion.

    Returns:
        The joints and caption of the clip that :func:`draw_clip` draws from these arguments.
    """
    chosen = plan_clip(seed, index, held_out=held_out)

    def stream(purpose: int) -> RandomStream:
        return RandomStream(seed, index, purpose)

    size = {"height": DEFAULT_SIZE_PX, "width": DEFAULT_SIZE_PX}
    person = draw_person(chosen, stream(_PERSON))
    shot = draw_shot(chosen.framing, chosen.action, stream(_CAMERA), stream(_MOTION), **size)
    # The shot stands for the reference too, whose one frame is cut off.
    figure = _pose_both(person, shot, shot, np.arange(num_frames) / fps, (0, 0, 0), DEFAULT_SIZE_PX)
    return Joints2D(
        caption=draw_caption(chosen, stream(_CAPTION)),
        attributes=chosen,
        points_TJ2=figure.points_TJ2[:num_frames].astype(np.float32),
        facing_TJ=figure.visible_TJ[:num_frames],
    )


def stream_clips(
    seed: int,
    *,
    start: int = 0,
    step: int = 1,
    held_out: bool = False,
    height: int = DEFAULT_SIZE_PX,
    width: int = DEFAULT_SIZE_PX,
    num_frames: int = DEFAULT_NUM_FRAMES,
    fps: float = DEFAULT_FPS,
) -> Iterator[Clip]:
    """Yield clips for ever: number ``start``, ``start + step`` and so on.

    Args:
        seed: Which endless source.
        start: First clip; where an interrupted reader goes on.
        step: Distance of clips, so that several readers share one source.
        held_out: As in :func:`draw_clip`.
        height: Rows of a frame.
        width: Columns of a frame.
        num_frames: Length of every clip.
        fps: Frames a second of the motion.

    Yields:
        Clips as :func:`draw_clip` draws them.
    """
    for index in itertools.count(start, step):
        yield draw_clip(
            seed,
            index,
            held_out=held_out,
            height=height,
            width=width,
            num_frames=num_frames,
            fps=fps,
        )


@dataclass(frozen=True)
class Shot:
    """A motion and the camera that films it."""

    motion: Motion
    scale: float
    """Pixels per body height."""
    x: float
    """Column of the body's middle."""
    ground: float
    """Row of the ground."""


def draw_shot(
    framing: str,
    action: str,
    place: RandomStream,
    manner_of: RandomStream,
    *,
    height: int,
    width: int,
) -> Shot:
    """Draw how an action is performed, and place the camera so that it stays in the picture.

    Args:
        framing: ``full``, ``half`` or ``portrait``.
        action: What will be done; some reach above the head or far out.
        place: Small variation of size and place.
        manner_of: Speed, phase and direction of the motion.
        height: Rows.
        width: Columns.

    Returns:
        The motion, and scale and position of the body in the picture.
    """
    motion, manner = draw_motion(action, manner_of, close=framing == "portrait"), MANNERS[action]
    if framing == "full":
        side = min(height, width / 0.85)
        scale = side * place.uniform(0.8, 0.88) / (1 + manner.headroom)
        ground = height * place.uniform(0.925, 0.95)
        return Shot(motion, scale, width * place.uniform(0.45, 0.55), ground)
    tall = 0.71 + manner.headroom if framing == "half" else 0.46
    broad = max(manner.breadth, 0.46)
    # What a tall picture has to spare is above the head, or it would show more of the body.
    spare = max(0.0, height - width * tall / broad) if height > width else 0.0
    side = height - spare
    scale = place.uniform(0.9, 0.96) * min(side / tall, width / broad)
    # Room for two raised arms above the head; a bow needs none, so the head stays near the top.
    top = 1.0 + (manner.headroom if framing == "half" else 0.0)
    ground = spare + side * place.uniform(0.05, 0.08) + scale * top * math.cos(CAMERA_PITCH)
    return Shot(motion, scale, width * place.uniform(0.46, 0.54), ground)


def _pose_both(
    person: Person,
    shot: Shot,
    reference: Shot,
    times_T: np.ndarray,
    shadow: Color,
    height: int,
) -> Figure:
    """The figure of all frames and, last, of the reference: one computation for both."""
    num_frames = len(times_T)
    clip_pose = pose_at(shot.motion, person.body, times_T)
    pose = join_poses(clip_pose, pose_at(reference.motion, person.body, np.zeros(1)))
    joints = solve(person.body, pose)
    in_clip_T = np.arange(num_frames + 1) < num_frames
    camera = Camera(
        *(
            np.where(in_clip_T, getattr(shot, name), getattr(reference, name))
            for name in ("scale", "x", "ground")
        )
    )
    drift = shot.motion.drift
    period_s = 2.6 + 1.6 * drift[8]
    since_blink = np.mod(times_T + period_s * drift[11], period_s)
    blink_T = np.clip(1 - np.abs(since_blink - 0.16) / 0.15, 0, 1)
    face = Face(
        blink_T=np.append(blink_T, 0.0),
        mouth_T=np.clip(pose.mouth_T, 0, 1),
        smile=0.35 + 0.65 * drift[7],
    )
    figure = build_figure(
        person, joints, camera, pose.hands, face, height=height, hands_T=in_clip_T
    )
    figure.layers[SHADOW] = [_shadow(joints, camera, shadow, in_clip_T)]
    figure.order_T = [(SHADOW, *order) for order in figure.order_T]
    return figure


def _shadow(joints: Joints, camera: Camera, color: Color, shown_T: np.ndarray) -> Shape:
    """An ellipse on the ground, under the feet."""
    under = joints.points_TJ3[:, [10, 13]].mean(axis=1, keepdims=True)
    under[..., 1] = 0.0
    radius = camera.scale_T[:, None, None] * np.array([0.19, 0.042])
    outline = fixed(camera.project(under) + radius * circle(16))
    return Shape(color, shown_T=shown_T.tolist(), outline_T=list(outline))


def _paint_over(
    scene_YXC: np.ndarray, neutral_YXC: np.ndarray, figure: Figure
) -> tuple[np.ndarray, np.ndarray]:
    """Frames and masks: the figure's last frame in front of the plain backdrop, all others not."""
    size = (len(figure.order_T), *scene_YXC.shape[:2])
    frames_TYXC, mask_TYX = np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)
    no_mask = np.zeros(size[1:], np.uint8)
    scene_YX4, neutral_YX4 = (
        cv2.merge([*cv2.split(image), no_mask]) for image in (scene_YXC, neutral_YXC)
    )
    fills = fills_of(figure)
    canvas_YX4 = np.empty_like(scene_YX4)  # one for all frames: fresh memory costs more than paint
    for t, (frame, mask) in enumerate(zip(frames_TYXC, mask_TYX, strict=True)):
        canvas_YX4[:] = neutral_YX4 if t == size[0] - 1 else scene_YX4
        paint(fills, figure.order_T[t], t, canvas_YX4)
        cv2.cvtColor(canvas_YX4, cv2.COLOR_RGBA2RGB, frame)
        cv2.extractChannel(canvas_YX4, 3, mask)
    return frames_TYXC, mask_TYX
