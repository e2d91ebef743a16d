"""What the judges' networks are fitted on: exact parts, honest joints, damage within reason."""

from __future__ import annotations

import numpy as np

from musev.quality.networks import PARTS, SIDE_PX
from musev.quality.samples import (
    damage_picture,
    draw_pictures,
    draw_skeletons_of,
    find_parts,
    find_skeletons_of,
    vary_picture,
)
from musev.synthetic.clips import draw_clip
from musev.synthetic.people import ACTIONS, CLOTHES_COLORS


def test_parts_are_where_their_colour_is() -> None:
    clip = draw_clip(5, 0, num_frames=2)
    parts, _ = find_parts(clip, 2, 8.0)
    shirt = clip.frames_TYXC[parts == PARTS.index("shirt")].astype(float)
    named = np.array(CLOTHES_COLORS[clip.attributes.shirt_color])
    assert np.abs(np.median(shirt, axis=0) - named).max() < 14
    person = clip.mask_TYX > 127
    assert (parts[person] > 0).mean() > 0.75
    assert (parts[~person] > 0).mean() < 0.01


def test_pictures_are_four_frames_and_a_reference() -> None:
    pictures = draw_pictures(5, 2)
    assert pictures.frames_NYXC.shape == (10, SIDE_PX, SIDE_PX, 3)
    assert pictures.posed_N.tolist() == ([True] * 4 + [False]) * 2
    assert set(np.unique(pictures.parts_NYX)) <= set(range(len(PARTS)))


def test_a_varied_picture_takes_its_joints_along() -> None:
    """The brightest mark in the picture is where the varied joint says, mirrored or moved."""
    pictures = draw_pictures(5, 1)
    pictures.frames_NYXC[0] = 0
    y, x = 40, 52
    pictures.frames_NYXC[0, y - 2 : y + 3, x - 2 : x + 3] = 255
    pictures.points_NJ2[0] = (x, y)
    pictures.seen_NJ[0] = True
    for seed in range(12):
        image, points, seen, shares = vary_picture(pictures, 0, np.random.default_rng(seed))
        light = image.astype(float).sum(axis=-1)
        peak = np.argwhere(light > 0.9 * light.max()).mean(axis=0)[::-1]
        assert np.abs(peak - points[0]).max() < 2.5
        assert seen.any()
        assert np.allclose(shares.sum(axis=-1), 1)


def test_damage_keeps_the_picture_recognisable() -> None:
    frame = draw_clip(5, 1, num_frames=1).frames_TYXC[0]
    errors = [
        np.abs(damage_picture(frame, np.random.default_rng(seed)).astype(float) - frame).mean()
        for seed in range(20)
    ]
    assert max(errors) < 40
    assert np.mean(errors) > 2


def test_found_skeletons_lie_near_the_exact_ones() -> None:
    exact, seen, actions = draw_skeletons_of(5, 4)
    found, sure, same = find_skeletons_of(5, 4)
    assert actions.tolist() == same.tolist()
    assert max(actions) < len(ACTIONS)
    assert exact.shape == found.shape == (4, 12, 18, 2)
    distance = np.linalg.norm(exact - found, axis=-1)[seen > 0]
    assert np.median(distance) < 0.03
    assert sure[seen > 0].mean() > 0.9
