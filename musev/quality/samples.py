"""Drawn pictures with joints and parts, and skeletons with actions, to fit the judges on.

The parts are known exactly: a clip is drawn again with one colour changed, and where the picture
changed, that part is. Axes here: N picture, T frame, J joint, Y X pixel rows and columns, C
channel.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from musev.quality.networks import CELL_PX, PARTS, SIDE_PX
from musev.quality.pose import find_people
from musev.synthetic.clips import Clip, draw_clip
from musev.synthetic.people import ACTIONS

_OTHER_COLORS = {
    "skin": ("skin", {"dark": "pale"}, "dark"),
    "hair": ("hair_color", {"blond": "black"}, "blond"),
    "shirt": ("shirt_color", {"yellow": "blue", "white": "black"}, "yellow"),
    "trousers": ("trousers_color", {"yellow": "blue", "white": "black"}, "yellow"),
}
"""For each part its attribute, the colour that replaces a given one, and what replaces the rest."""
_CHANGED = 24  # sum of a pixel's channel differences from which it belongs to the part
_FAR_APART_FPS = 1.7
MIRRORED = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)
"""Where each joint goes when the picture is mirrored."""


@dataclass(frozen=True)
class Pictures:
    """Pictures with what is in them."""

    frames_NYXC: np.ndarray
    points_NJ2: np.ndarray
    """Pixels; meaningless where ``posed_N`` is False."""
    seen_NJ: np.ndarray
    parts_NYX: np.ndarray
    """uint8: number of the part in :data:`musev.quality.networks.PARTS`."""
    posed_N: np.ndarray
    """bool: whether the joints are known (reference portraits have none)."""


def find_parts(clip: Clip, num_frames: int, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the parts of a drawn clip by drawing it again in other colours.

    Args:
        clip: A clip of the default size.
        num_frames: As it was drawn.
        fps: As it was drawn.

    Returns:
        ``(parts_TYX, reference_parts_YX)``: uint8 part numbers.
    """
    parts_TYX = np.zeros(clip.mask_TYX.shape, np.uint8)
    reference_YX = np.zeros(clip.mask_TYX.shape[1:], np.uint8)
    for number, part in enumerate(PARTS):
        if part not in _OTHER_COLORS:
            continue
        name, replaced, usual = _OTHER_COLORS[part]
        color = replaced.get(getattr(clip.attributes, name), usual)
        attributes = dataclasses.replace(clip.attributes, **{name: color})
        other = draw_clip(
            clip.seed, clip.index, attributes=attributes, num_frames=num_frames, fps=fps
        )
        for parts, first, second in (
            (parts_TYX, clip.frames_TYXC, other.frames_TYXC),
            (reference_YX, clip.reference_YXC, other.reference_YXC),
        ):
            change = np.abs(first.astype(np.int16) - second).sum(axis=-1)
            parts[change > _CHANGED] = number
    return parts_TYX, reference_YX


def draw_pictures(seed: int, num_clips: int) -> Pictures:
    """Draw labelled pictures: four frames and the reference of every clip.

    Args:
        seed: Which endless source of clips.
        num_clips: How many of its first clips.

    Returns:
        Five pictures a clip, of 128 by 128 pixels.
    """
    frames, points, seen, parts = [], [], [], []
    for index in range(num_clips):
        clip = draw_clip(seed, index, num_frames=4, fps=_FAR_APART_FPS)
        parts_TYX, reference_YX = find_parts(clip, 4, _FAR_APART_FPS)
        frames += [*clip.frames_TYXC, clip.reference_YXC]
        parts += [*parts_TYX, reference_YX]
        points += [*clip.points_TJ2, np.zeros_like(clip.points_TJ2[0])]
        seen += [*clip.visible_TJ, np.zeros_like(clip.visible_TJ[0])]
    posed_N = np.arange(len(frames)) % 5 != 4
    return Pictures(np.stack(frames), np.stack(points), np.stack(seen), np.stack(parts), posed_N)


def draw_skeletons_of(seed: int, num_clips: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw clips and keep their joints and actions.

    Args:
        seed: Which endless source of clips.
        num_clips: How many of its first clips.

    Returns:
        ``(points_NTJ2, seen_NTJ, actions_N)``: shares of the picture, 0 or 1, action numbers.
    """
    side = 32  # joints scale with the picture; a small one is painted quickly
    points, seen, actions = [], [], []
    for index in range(num_clips):
        clip = draw_clip(seed, index, height=side, width=side)
        points.append((clip.points_TJ2 + 0.5) / side)
        seen.append(clip.visible_TJ)
        actions.append(ACTIONS.index(clip.attributes.action))
    return np.stack(points), np.stack(seen).astype(np.float32), np.array(actions)


def find_skeletons_of(seed: int, num_clips: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw clips, damage every other one, and keep the joints that the joint finder finds.

    Args:
        seed: Which endless source of clips.
        num_clips: How many of its first clips.

    Returns:
        As :func:`draw_skeletons_of`, with the finder's errors and doubts.
    """
    points, seen, actions = [], [], []
    for index in range(num_clips):
        clip = draw_clip(seed, index)
        frames_TYXC = clip.frames_TYXC
        if index % 2:
            # The same draws for every frame: a renderer's faults stay through a clip.
            alike = [np.random.default_rng((seed, index)) for _ in frames_TYXC]
            frames_TYXC = np.stack([*map(damage_picture, frames_TYXC, alike)])
        found = find_people(frames_TYXC)
        points.append((found.points_TJ2 + 0.5) / SIDE_PX)
        seen.append(found.seen_TJ)
        actions.append(ACTIONS.index(clip.attributes.action))
    return np.stack(points), np.stack(seen).astype(np.float32), np.array(actions)


def damage_picture(picture_YXC: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Soften, shift in colour, compress and add grain, each at random, as rendered videos are."""
    image = picture_YXC
    if random.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.4, 1.8))
    if random.random() < 0.25:
        size = int(random.integers(56, 110))
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, picture_YXC.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if random.random() < 0.4:
        quality = int(random.integers(25, 95))
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    values = image.astype(np.float32)
    if random.random() < 0.6:
        gain = random.uniform(0.88, 1.12) * random.uniform(0.95, 1.05, 3)
        values = values * gain.astype(np.float32) + np.float32(random.uniform(-12, 12))
    if random.random() < 0.4:
        values += random.uniform(1, 9) * random.standard_normal(values.shape, dtype=np.float32)
    return np.clip(values, 0, 255).astype(np.uint8)


def vary_picture(
    pictures: Pictures, number: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One picture, mirrored, moved, resized and damaged at random, as a training sample.

    Args:
        pictures: The source.
        number: Which picture.
        random: Where chance comes from.

    Returns:
        ``(picture_YXC uint8, points_J2 pixels, seen_J, parts_HWP)``; the parts are shares of cells.
    """
    image, parts = pictures.frames_NYXC[number], pictures.parts_NYX[number]
    points, seen = pictures.points_NJ2[number], pictures.seen_NJ[number]
    if random.random() < 0.5:
        image, parts = image[:, ::-1], parts[:, ::-1]
        points, seen = points[list(MIRRORED)] * [-1, 1] + [SIDE_PX - 1, 0], seen[list(MIRRORED)]
    if random.random() < 0.6:
        scale = random.uniform(0.8, 1.15)
        middle = (SIDE_PX - 1) / 2
        shift = middle - scale * middle + random.uniform(-8, 8, 2)
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        size = (SIDE_PX, SIDE_PX)
        image = cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        parts = cv2.warpAffine(
            parts, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
        )
        points = points * scale + shift
        inside = ((points > -0.5) & (points < SIDE_PX - 0.5)).all(axis=-1)
        seen = seen & inside
    cells = SIDE_PX // CELL_PX
    sparse = parts[::2, ::2].reshape(cells, CELL_PX // 2, cells, CELL_PX // 2, 1)
    shares = (sparse == np.arange(len(PARTS))).mean(axis=(1, 3), dtype=np.float32)
    return damage_picture(np.ascontiguousarray(image), random), points, seen, shares
