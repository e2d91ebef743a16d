"""Whole clips: repeatable, true to their attributes, at any size."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import subprocess
import sys

import cv2
import numpy as np
import pytest

from musev.synthetic.clips import Clip, draw_clip, draw_joints, plan_clip, stream_clips
from musev.synthetic.people import (
    ACTION_FRAMINGS,
    ACTIONS,
    CLOTHES_COLORS,
    SKIN_COLORS,
    RandomStream,
    draw_person,
    is_held_out,
)

SHORT = {"num_frames": 3}


def digest(clip: Clip) -> str:
    total = hashlib.sha256(clip.caption.encode())
    for name in (
        "frames_TYXC",
        "control_TYXC",
        "points_TJ2",
        "visible_TJ",
        "mask_TYX",
        "reference_YXC",
    ):
        total.update(np.ascontiguousarray(getattr(clip, name)).tobytes())
    return total.hexdigest()


def test_the_same_number_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib\n"
        "from musev.synthetic.clips import draw_clip\n"
        "draw_clip(9, 1, num_frames=2)\n"
        "c = draw_clip(4, 17, num_frames=3)\n"
        "print(hashlib.sha256(c.frames_TYXC.tobytes() + c.control_TYXC.tobytes()\n"
        "      + c.reference_YXC.tobytes() + c.caption.encode()).hexdigest())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    clip = draw_clip(4, 17, **SHORT)
    ours = hashlib.sha256(
        clip.frames_TYXC.tobytes()
        + clip.control_TYXC.tobytes()
        + clip.reference_YXC.tobytes()
        + clip.caption.encode()
    )
    assert ran.stdout.strip() == ours.hexdigest()


def test_clips_repeat_and_differ_by_seed_and_number() -> None:
    keys = [(1, 2), (2, 1), (1, 3)]
    digests = [digest(draw_clip(*key, **SHORT)) for key in keys]
    assert digests == [digest(draw_clip(*key, **SHORT)) for key in keys]
    assert len(set(digests)) == 3


def test_a_longer_clip_begins_with_the_shorter_one() -> None:
    for index in range(6):
        short, long = draw_clip(3, index, num_frames=4), draw_clip(3, index, num_frames=9)
        for name in ("frames_TYXC", "control_TYXC", "mask_TYX", "points_TJ2"):
            np.testing.assert_array_equal(getattr(long, name)[:4], getattr(short, name))
        np.testing.assert_array_equal(long.reference_YXC, short.reference_YXC)


def test_training_never_meets_a_held_out_combination_and_evaluation_only_those() -> None:
    assert not any(is_held_out(plan_clip(1, index)) for index in range(3000))
    held = [plan_clip(1, index, held_out=True) for index in range(200)]
    assert all(map(is_held_out, held))
    assert len({(a.shirt_color, a.trousers_color, a.scene, a.action) for a in held}) > 100
    clip = draw_clip(1, 5, held_out=True, **SHORT)
    assert is_held_out(clip.attributes)


def test_streams_start_anywhere_and_interleave() -> None:
    whole = [digest(c) for c in itertools.islice(stream_clips(2, **SHORT), 6)]
    odd = [digest(c) for c in itertools.islice(stream_clips(2, start=1, step=2, **SHORT), 3)]
    assert odd == whole[1::2]


HIPS, KNEES = [8, 11], [9, 12]


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (128, 128), (96, 160), (192, 112), (333, 257)]
)
def test_any_size_gives_arrays_of_that_size(height: int, width: int) -> None:
    clip = draw_clip(5, 1, height=height, width=width, num_frames=2)
    assert clip.frames_TYXC.shape == clip.control_TYXC.shape == (2, height, width, 3)
    assert clip.mask_TYX.shape == (2, height, width)
    assert clip.reference_YXC.shape == (height, width, 3)
    assert clip.points_TJ2.shape == (2, 18, 2)
    for name in ("frames_TYXC", "control_TYXC", "mask_TYX", "reference_YXC"):
        array = getattr(clip, name)
        assert array.dtype == np.uint8
        assert array.flags["C_CONTIGUOUS"]
    assert clip.points_TJ2.dtype == np.float32
    assert clip.visible_TJ.dtype == bool


def test_the_same_clip_at_twice_the_size_is_the_same_picture() -> None:
    for index in range(4):
        small = draw_clip(6, index, num_frames=1)
        large = draw_clip(6, index, num_frames=1, height=256, width=256)
        np.testing.assert_allclose(large.points_TJ2, 2 * small.points_TJ2, atol=0.6)
        halved = cv2.resize(large.frames_TYXC[0], (128, 128), interpolation=cv2.INTER_AREA)
        assert np.abs(halved.astype(int) - small.frames_TYXC[0]).mean() < 7


def seen_below(height: int, width: int) -> dict[str, tuple[float, float]]:
    """Framing to the share of clips that show the hips, and that show a knee."""
    seen: dict[str, list[tuple[bool, bool]]] = {"half": [], "portrait": []}
    for index in range(120):
        framing = plan_clip(31, index).framing
        if framing in seen:
            clip = draw_clip(31, index, num_frames=1, height=height, width=width)
            y = clip.points_TJ2[0, :, 1]
            seen[framing].append((bool((y[HIPS] < height).all()), bool((y[KNEES] < height).any())))
    return {name: tuple(np.mean(shares, axis=0)) for name, shares in seen.items()}


def test_no_size_shows_more_of_the_body_than_the_framing_says() -> None:
    square = seen_below(128, 128)
    assert square["half"][1] < 0.35
    assert square["portrait"] < (0.4, 0.01)
    for height, width in ((192, 112), (384, 128), (112, 192)):
        found = seen_below(height, width)
        assert found["half"][0] == 1
        for name in square:
            assert np.all(np.less_equal(found[name], square[name])), (name, height, width)


def every_kind() -> list[tuple[str, str]]:
    return [(action, framing) for action in ACTIONS for framing in ACTION_FRAMINGS[action]]


def clip_of(action: str, framing: str, index: int, **looks: str) -> Clip:
    attributes = dataclasses.replace(plan_clip(8, index), action=action, framing=framing, **looks)
    return draw_clip(8, index, attributes=attributes, num_frames=8)


@pytest.mark.parametrize(("action", "framing"), every_kind())
def test_keypoints_inside_the_picture_lie_on_the_person(action: str, framing: str) -> None:
    for index in range(3):
        clip = clip_of(action, framing, index)
        frames, joints = np.nonzero(clip.visible_TJ)
        assert len(frames) > 4 * 8
        x, y = np.rint(clip.points_TJ2[frames, joints]).astype(int).T
        assert (clip.mask_TYX[frames, y, x] > 127).all()


@pytest.mark.parametrize(("action", "framing"), every_kind())
def test_the_head_and_the_moving_hands_stay_in_the_picture(action: str, framing: str) -> None:
    for index in range(3):
        clip = clip_of(action, framing, index)
        faces = clip.points_TJ2[:, 0]
        assert ((faces > 2) & (faces < 126)).all()
        if framing == "full":
            assert ((clip.points_TJ2 > 0) & (clip.points_TJ2 < 127)).all()


def test_wrists_are_skin_in_the_picture() -> None:
    """The wrist keypoint is where the hand is drawn: skin near it in nearly every frame."""
    hits, total = 0, 0
    for index in range(12):
        clip = clip_of("waving", "full", index, shirt_shape="none", shirt_color="blue")
        skin = SKIN_COLORS[clip.attributes.skin]
        for t, joint in itertools.product(range(8), (4, 7)):
            x, y = np.rint(clip.points_TJ2[t, joint]).astype(int)
            patch = clip.frames_TYXC[t, y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)
            hits += min(math.dist(pixel, skin) for pixel in patch) < 60
            total += 1
    assert hits / total > 0.97


def share_of(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> float:
    """Share of masked pixels within a small distance of a colour."""
    pixels = image[mask > 200].astype(int)
    return float((np.abs(pixels - color).max(axis=-1) < 6).mean())


def test_frames_and_reference_show_the_persons_own_colours() -> None:
    for index in range(20):
        attributes = dataclasses.replace(
            plan_clip(9, index), action="standing", framing="full", hair_style="short"
        )
        clip = draw_clip(9, index, attributes=attributes, num_frames=1)
        person = draw_person(attributes, RandomStream(9, index, 1))
        whole = np.full(clip.reference_YXC.shape[:2], 255, np.uint8)
        for color in (person.shirt, person.hair, person.skin):
            assert share_of(clip.frames_TYXC[0], clip.mask_TYX[0], color) > 0.02
            assert share_of(clip.reference_YXC, whole, color) > 0.005
        below = share_of(clip.reference_YXC, whole, person.trousers)
        same = person.trousers == person.shirt
        assert (below > 0.005) or clip.reference_framing == "portrait" or same


def test_the_shirt_of_a_frame_has_the_colour_of_its_name() -> None:
    """Read at the belly, as a judge would."""
    for index in range(30):
        clip = clip_of("standing", "full", index)
        neck, hips = clip.points_TJ2[0, 1], clip.points_TJ2[0, [8, 11]].mean(axis=0)
        x, y = np.rint(neck + 0.55 * (hips - neck)).astype(int)
        patch = np.median(clip.frames_TYXC[0, y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3), axis=0)
        named = min(CLOTHES_COLORS, key=lambda name: math.dist(patch, CLOTHES_COLORS[name]))
        assert named == clip.attributes.shirt_color


def test_the_reference_is_another_framing_on_grey() -> None:
    for index in range(20):
        clip = draw_clip(10, index, num_frames=1)
        assert clip.reference_framing != clip.attributes.framing
        corner = clip.reference_YXC[:3, :3].reshape(-1, 3).astype(int)
        assert np.ptp(corner, axis=-1).max() < 8


def test_the_mask_separates_the_person_from_a_still_background() -> None:
    """Outside the union of masks nothing but the shadow moves."""
    clip = clip_of("waving", "portrait", 1)
    away = cv2.dilate(clip.mask_TYX.max(axis=0), np.ones((5, 5), np.uint8)) == 0
    assert away.mean() > 0.15
    changed = np.ptp(clip.frames_TYXC.astype(int), axis=0).max(axis=-1)
    assert not changed[away].any()
    assert changed[~away].any()


def test_control_drawings_lie_on_the_person() -> None:
    for index in range(6):
        clip = draw_clip(11, index, **SHORT)
        drawn = clip.control_TYXC.max(axis=-1) > 60
        wide = np.stack([cv2.dilate(m, np.ones((5, 5), np.uint8)) for m in clip.mask_TYX]) > 0
        assert drawn.any(axis=(1, 2)).all()
        assert (drawn & wide).sum() / drawn.sum() > 0.97


def test_joints_alone_are_those_of_the_clip() -> None:
    for index, held_out in ((3, False), (4, True), (5, False)):
        clip = draw_clip(6, index, held_out=held_out, num_frames=5, fps=12.0)
        joints = draw_joints(6, index, held_out=held_out, num_frames=5, fps=12.0)
        np.testing.assert_array_equal(joints.points_TJ2, clip.points_TJ2)
        assert (joints.caption, joints.attributes) == (clip.caption, clip.attributes)
        inside = ((clip.points_TJ2 > -0.5) & (clip.points_TJ2 < 127.5)).all(axis=-1)
        np.testing.assert_array_equal(joints.facing_TJ & inside, clip.visible_TJ)


def test_no_ray_and_no_torch_are_imported() -> None:
    code = "import sys, musev.synthetic.clips; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
