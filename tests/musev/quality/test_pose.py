"""Joints: found where they are drawn, in any size of picture; missed where they are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musev.errors import ShapeError
from musev.quality.pose import body_height_px, find_people, part_of, pck
from musev.synthetic.clips import draw_clip
from tests.musev.quality.controls import SEED, blurred, clip_of, drawn, frames, grainy


def test_the_finders_own_pck_on_drawn_clips_is_at_least_0_98() -> None:
    clips = [drawn(index, 12) for index in range(40)]
    shares = [pck(find_people(c.frames_TYXC), c.points_TJ2, c.visible_TJ).value for c in clips]
    assert np.mean(shares) >= 0.98


def test_soft_and_grainy_pictures_cost_little() -> None:
    clips = [drawn(index, 12) for index in range(16)]
    soft = [grainy(blurred(clip.frames_TYXC, 1.2), 5) for clip in clips]
    shares = [
        pck(find_people(frames_TYXC), clip.points_TJ2, clip.visible_TJ).value
        for frames_TYXC, clip in zip(soft, clips, strict=True)
    ]
    assert np.mean(shares) >= 0.96


def test_another_clips_pose_and_a_mirrored_pose_are_caught() -> None:
    waving, kicking = clip_of("waving", 12), clip_of("kicking", 12)
    found = find_people(waving.frames_TYXC)
    assert pck(found, waving.points_TJ2, waving.visible_TJ).value > 0.95
    assert pck(found, kicking.points_TJ2, kicking.visible_TJ).value < 0.7
    mirrored = find_people(waving.frames_TYXC[:, :, ::-1])
    assert pck(mirrored, waving.points_TJ2, waving.visible_TJ).value < 0.8


def test_a_picture_without_a_person_scores_low_and_is_noticed() -> None:
    clip = drawn(0, 12)
    noise = np.random.default_rng(0).integers(0, 256, clip.frames_TYXC.shape, dtype=np.uint8)
    found = find_people(noise)
    assert pck(found, clip.points_TJ2, clip.visible_TJ).value < 0.4
    assert not pck(found, clip.points_TJ2, np.zeros_like(clip.visible_TJ)).known


def test_joints_come_in_pixels_of_the_frames_given() -> None:
    small = draw_clip(SEED, 3, held_out=True, num_frames=4)
    large = np.stack([cv2.resize(f, (256, 256)) for f in small.frames_TYXC])
    wide = np.concatenate([large, np.repeat(large[:, :, -1:], 64, axis=2)], axis=2)
    found = find_people(wide)
    assert found.parts_TPYX.shape == (4, 5, 256, 320)
    points = (small.points_TJ2 + 0.5) * 2 - 0.5
    assert pck(found, points, small.visible_TJ).value > 0.9


def test_parts_lie_on_the_person_and_sum_to_one() -> None:
    clip = drawn(1, 4)
    found = find_people(clip.frames_TYXC)
    assert np.allclose(found.parts_TPYX.astype(np.float32).sum(axis=1), 1, atol=0.01)
    outside = part_of(found, "other") > 0.5
    person = clip.mask_TYX > 127
    assert (outside & person).sum() / person.sum() < 0.12
    assert (~outside & ~person).sum() / (~person).sum() < 0.05


def test_a_body_is_as_tall_as_its_bones_say_even_squatting() -> None:
    for action in ("standing", "squatting", "bowing"):
        clip = clip_of(action, 12, framing="full")
        top = np.flatnonzero(clip.mask_TYX.max(axis=(0, 2)))[0]
        bottom = np.flatnonzero(clip.mask_TYX.max(axis=(0, 2)))[-1]
        assert body_height_px(clip.points_TJ2) == pytest.approx(bottom - top, rel=0.2)


def test_another_number_of_frames_is_refused() -> None:
    clip = drawn(0, 12)
    with pytest.raises(ShapeError):
        pck(find_people(frames(0)[:5]), clip.points_TJ2, clip.visible_TJ)
