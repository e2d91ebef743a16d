"""What a drawn clip shows, in the words of its caption: scene, colours, action, the same person.

Axes here: T frame, N pixel or template, Y X pixel rows and columns, C channel. A reading is a word
of the tables of :mod:`musev.synthetic.people`, or None with a reason.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from musev.quality.fidelity import to_lab
from musev.quality.networks import joint_features, load_action_net
from musev.quality.pose import SEEN, People, find_people, part_of, surely_part
from musev.quality.score import Score, unknown
from musev.synthetic.people import (
    ACTIONS,
    CLOTHES_COLORS,
    FRAMINGS,
    HAIR_COLORS,
    SCENES,
    SKIN_COLORS,
    Color,
    RandomStream,
)
from musev.synthetic.scenes import draw_scene

BALD = "bald"
_SURE = 0.75
_FEWEST_PIXELS = 24
_FARTHEST_COLOR = 30.0
_LEAST_HAIR = 0.2
"""Hair pixels per skin pixel of the head below which a head is bald: brows are not hair."""
_SAME_COLOR = 4.0
"""Lab units within which hair cannot be told from skin: brown hair on dark skin, or none."""
_LIKE_HAIR = 20.0
"""Lab units from the nearest hair colour within which skin could be taken for hair."""
_TOO_SHORT = "too short to tell an action"
_ONE_COLOR = "hair and skin have one colour"
_ACTION_FPS = 8.0
_ACTION_FRAMES = 12
_FEWEST_FRAMES = 6
_STILL = 0.018
"""Share of the body's height within which joints only tremble."""
_HELD = ("standing", "pointing")
"""Actions that somebody does without moving; all others need motion."""
_NECK_TO_FACE = 0.15
"""Of the body's height, from musev.synthetic.people.draw_body_lengths."""
_SCENE_ROWS = 16
_SCENE_SIDE = 128
_SCENE_SAMPLES = 12
_FARTHEST_SCENE = 14.0


@dataclass(frozen=True)
class Reading:
    """A word read from frames; without one there is a reason."""

    word: str | None
    reason: str = ""


def read_attributes(
    frames_TYXC: np.ndarray, found: People, *, fps: float = _ACTION_FPS
) -> dict[str, Reading]:
    """Read everything that a caption may have named.

    Args:
        frames_TYXC: uint8 RGB.
        found: What :func:`musev.quality.pose.find_people` found in them.
        fps: Frames a second.

    Returns:
        Readings of ``scene, shirt_color, trousers_color, skin, hair_color, action``.
    """
    return {
        "scene": read_scene(frames_TYXC, found),
        "shirt_color": read_color(frames_TYXC, found, "shirt"),
        "trousers_color": read_color(frames_TYXC, found, "trousers"),
        "skin": read_color(frames_TYXC, found, "skin"),
        "hair_color": read_hair(frames_TYXC, found),
        "action": read_action(found, frames_TYXC.shape[1:3], fps=fps),
    }


_TABLES: Mapping[str, Mapping[str, Color]] = {
    "shirt": CLOTHES_COLORS,
    "trousers": CLOTHES_COLORS,
    "skin": SKIN_COLORS,
    "hair": HAIR_COLORS,
}


def read_color(frames_TYXC: np.ndarray, found: People, part: str) -> Reading:
    """Name the colour of a part: that of the table nearest to the middle of its pixels, in Lab.

    Args:
        frames_TYXC: uint8 RGB.
        found: What was found in them.
        part: ``shirt``, ``trousers`` or ``skin``; hair has :func:`read_hair`.

    Returns:
        A colour's name; None if too little of the part is seen or its colour is in no table.
    """
    return _name_color(frames_TYXC, surely_part(found, part, above=_SURE), part)


def _name_color(frames_TYXC: np.ndarray, chosen_TYX: np.ndarray, part: str) -> Reading:
    if chosen_TYX.sum() < _FEWEST_PIXELS:
        return Reading(None, f"no {part} to be seen")
    middle = _middle_color(frames_TYXC, chosen_TYX)
    distances = np.linalg.norm(_lab_table(part) - middle, axis=-1)
    nearest = int(distances.argmin())
    if distances[nearest] > _FARTHEST_COLOR:
        return Reading(None, f"the {part} has none of the known colours")
    return Reading(tuple(_TABLES[part])[nearest])


def read_hair(frames_TYXC: np.ndarray, found: People) -> Reading:
    """Name the colour of the hair, or ``bald``.

    Args:
        frames_TYXC: uint8 RGB.
        found: What was found in them.

    Returns:
        A hair colour, ``bald``, or None: without a head to look at, or where hair would have the
        skin's colour.
    """
    hair_TYX = surely_part(found, "hair", above=0.5)
    skin_TYX = surely_part(found, "skin", above=_SURE)
    for hair_YX, skin_YX, head_YX in zip(hair_TYX, skin_TYX, _head_masks(found), strict=True):
        hair_YX &= head_YX
        skin_YX &= head_YX
    if hair_TYX.sum() + skin_TYX.sum() < _FEWEST_PIXELS:
        return Reading(None, "no head to be seen")
    if hair_TYX.sum() < max(_LEAST_HAIR * skin_TYX.sum(), 1):
        return Reading(BALD)
    if skin_TYX.any():
        skin = _middle_color(frames_TYXC, skin_TYX)
        if np.linalg.norm(_middle_color(frames_TYXC, hair_TYX) - skin) < _SAME_COLOR:
            nearest = np.linalg.norm(_lab_table("hair") - skin, axis=-1).min()
            if nearest > _LIKE_HAIR:
                return Reading(BALD)
            return Reading(None, _ONE_COLOR)
    return _name_color(frames_TYXC, hair_TYX, "hair")


def _head_masks(found: People) -> Iterator[np.ndarray]:
    """Pixels within a head's reach of the middle of eyes and nose, frame by frame."""
    height, width = found.parts_TPYX.shape[2:]
    rows_YX, columns_YX = np.indices((height, width))
    face_T2 = found.points_TJ2[:, [0, 14, 15]].mean(axis=1)
    radius_T = 0.9 * np.linalg.norm(face_T2 - found.points_TJ2[:, 1], axis=-1)
    reach_T = np.maximum(radius_T, 3) ** 2
    for (x, y), reach in zip(face_T2, reach_T, strict=True):
        yield (columns_YX - x) ** 2 + (rows_YX - y) ** 2 < reach


def _middle_color(frames_TYXC: np.ndarray, chosen_TYX: np.ndarray) -> np.ndarray:
    """Median Lab colour of the chosen pixels, of at most some 20,000 of them."""
    every = max(1, int(chosen_TYX.sum()) // 20_000)
    picked, num_seen = [], 0
    for frame_YXC, chosen_YX in zip(frames_TYXC, chosen_TYX, strict=True):
        pixels_N3 = frame_YXC[chosen_YX]
        picked.append(pixels_N3[-num_seen % every :: every])
        num_seen += len(pixels_N3)
    return np.median(to_lab(np.concatenate(picked)[None])[0], axis=0)


@functools.cache
def _lab_table(part: str) -> np.ndarray:
    return to_lab(np.array([list(_TABLES[part].values())], np.uint8))[0]


def read_scene(frames_TYXC: np.ndarray, found: People) -> Reading:
    """Name the scene: that of the drawn backdrop whose rows of colour are nearest.

    Args:
        frames_TYXC: uint8 RGB.
        found: What was found in them; the person is left out.

    Returns:
        A scene's name; None if no backdrop is near.
    """
    picks = np.unique(np.linspace(0, len(frames_TYXC) - 1, 4).astype(int))
    rows, weights = _rows_of_color(frames_TYXC[picks], part_of(found, "other")[picks] > _SURE)
    if (weights > 0).mean() < 0.3:
        return Reading(None, "the person covers the scene")
    templates_NR3, names = _scene_templates()
    # Mean over rows of the distance in Lab, at most 40 each: one odd row must not decide.
    distance_NR = np.minimum(np.linalg.norm(templates_NR3 - rows, axis=-1), 40.0)
    distance_N = (distance_NR * weights).sum(axis=-1) / weights.sum()
    nearest = int(distance_N.argmin())
    if distance_N[nearest] > _FARTHEST_SCENE:
        return Reading(None, "no known scene is near")
    return Reading(names[nearest])


def _rows_of_color(frames_TYXC: np.ndarray, free_TYX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median Lab colour of 16 bands of rows beside the person, and how much of each is free."""
    rows, weights = [], []
    lab_TYXC = np.stack([to_lab(frame) for frame in frames_TYXC])
    for band in np.array_split(np.arange(frames_TYXC.shape[1]), _SCENE_ROWS):
        free, lab = free_TYX[:, band], lab_TYXC[:, band]
        share = float(free.mean())
        weights.append(share if share > 0.05 else 0.0)
        rows.append(np.median(lab[free], axis=0) if share > 0.05 else np.zeros(3))
    return np.stack(rows), np.array(weights)


@functools.cache
def _scene_templates() -> tuple[np.ndarray, tuple[str, ...]]:
    """Rows of colour of backdrops drawn without anybody, twelve for each scene and framing."""
    rows, names = [], []
    everywhere = np.ones((1, _SCENE_SIDE, _SCENE_SIDE), bool)
    for scene in SCENES:
        for framing in FRAMINGS:
            for sample in range(_SCENE_SAMPLES):
                stream = RandomStream(7, len(rows), sample)
                size = {"height": _SCENE_SIDE, "width": _SCENE_SIDE}
                backdrop, _ = draw_scene(scene, framing, stream, **size)
                rows.append(_rows_of_color(backdrop[None], everywhere)[0])
                names.append(scene)
    return np.stack(rows), tuple(names)


def read_action(found: People, size: tuple[int, int], *, fps: float = _ACTION_FPS) -> Reading:
    """Name the action, from the joints over stretches of a second and a half.

    Args:
        found: What was found in the frames.
        size: Height and width of the frames.
        fps: Frames a second.

    Returns:
        The action with the greatest mean probability over all stretches; where nothing moves, of
        those that are held (a still picture of a dance is no dance). None if the clip is shorter
        than three quarters of a second or nobody is seen. Frames in a wrong order are no reason to
        doubt an action: that is ``disorder``'s to say.
    """
    duration_s = len(found.points_TJ2) / fps
    times = np.arange(int(duration_s * _ACTION_FPS + 1e-6)) * fps / _ACTION_FPS
    if len(times) < _FEWEST_FRAMES:
        return Reading(None, _TOO_SHORT)
    if (found.seen_TJ[:, 1] > SEEN).mean() < 0.5:
        return Reading(None, "nobody to be seen")
    picks = np.minimum(times.round().astype(int), len(found.points_TJ2) - 1)
    # Square pixels of square pictures are what the network knows: one scale for both directions.
    shares = ((found.points_TJ2[picks] + 0.5) / min(size)).astype(np.float32)
    seen = found.seen_TJ[picks].astype(np.float32)
    last = max(0, len(picks) - _ACTION_FRAMES)
    starts = sorted({*range(0, last, _ACTION_FRAMES // 2), last})
    stretches = [slice(start, start + _ACTION_FRAMES) for start in starts]
    points_BTJ2 = torch.from_numpy(np.stack([shares[stretch] for stretch in stretches]))
    seen_BTJ = torch.from_numpy(np.stack([seen[stretch] for stretch in stretches]))
    logits_BA = load_action_net()(joint_features(points_BTJ2, seen_BTJ))
    likely_A = logits_BA.softmax(dim=-1).mean(dim=0)
    possible = _HELD if _liveliness(found) < _STILL else ACTIONS
    return Reading(max(possible, key=lambda action: float(likely_A[ACTIONS.index(action)])))


def _liveliness(found: People) -> float:
    """How far the liveliest joint sways around its middle, as a share of the body's height."""
    face_T2 = found.points_TJ2[:, [0, 14, 15]].mean(axis=1)
    neck_T2 = found.points_TJ2[:, 1]
    height_px = np.percentile(np.linalg.norm(face_T2 - neck_T2, axis=-1), 90) / _NECK_TO_FACE
    usually_J = (found.seen_TJ > SEEN).mean(axis=0) > 0.6
    sway_J = found.points_TJ2.std(axis=0).max(axis=-1)
    return float(sway_J[usually_J].max(initial=0) / max(height_px, 1.0))


def agreement(reading: Reading, word: str) -> Score:
    """Whether a clip shows what it should: 1 or 0.

    Args:
        reading: What was read.
        word: What should be there.

    Returns:
        0 also where nothing could be read: a clip without a scene or a person is not right. Unknown
        where even a perfect clip could not be read: too short, or hair and skin of one colour.
    """
    if reading.reason in (_ONE_COLOR, _TOO_SHORT):
        return unknown(reading.reason)
    return Score(float(reading.word == word), reading.reason)


_IDENTITY = ("skin", "hair_color", "shirt_color", "trousers_color")


def read_identity(picture_YXC: np.ndarray) -> dict[str, Reading]:
    """Read from a portrait what makes a person: skin, hair and clothes.

    Args:
        picture_YXC: uint8 RGB, one drawn person.

    Returns:
        Readings of ``skin, hair_color, shirt_color, trousers_color``.
    """
    frames = picture_YXC[None]
    found = find_people(frames)
    return {
        "skin": read_color(frames, found, "skin"),
        "hair_color": read_hair(frames, found),
        "shirt_color": read_color(frames, found, "shirt"),
        "trousers_color": read_color(frames, found, "trousers"),
    }


def identity(readings: Mapping[str, Reading], reference: Mapping[str, Reading]) -> Score:
    """Share of skin, hair, shirt and trousers that are as in the reference, 0 to 1; 1 is the same.

    Args:
        readings: Of the clip, from :func:`read_attributes`.
        reference: Of the reference picture, from :func:`read_identity`.

    Returns:
        The share among what the reference shows; what the clip should show of skin, hair and shirt
        but does not counts as different, trousers below the picture do not.
    """
    same = []
    for name in _IDENTITY:
        expected, got = reference[name].word, readings[name].word
        if expected is None or (name == "trousers_color" and got is None):
            continue
        same.append(expected == got)
    if not same:
        return unknown("the reference shows nobody")
    return Score(float(np.mean(same)))
