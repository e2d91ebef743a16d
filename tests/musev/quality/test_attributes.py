"""Words read from drawn clips: right on the truth, wrong or missing when the clip is spoiled."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from musev.quality import attributes
from musev.quality.attributes import (
    BALD,
    Reading,
    agreement,
    identity,
    read_action,
    read_attributes,
    read_color,
    read_hair,
    read_identity,
    read_scene,
)
from musev.quality.fidelity import to_lab
from musev.quality.pose import find_people, part_of
from musev.synthetic.clips import draw_clip, plan_clip
from musev.synthetic.people import CLOTHES_COLORS, SCENES
from tests.musev.quality.controls import SEED, blurred, clip_of, drawn, grainy


def truth_of(clip) -> dict[str, str]:
    a = clip.attributes
    words = {
        "scene": a.scene,
        "shirt_color": a.shirt_color,
        "skin": a.skin,
        "hair_color": BALD if a.hair_style == "bald" else a.hair_color,
        "action": a.action,
    }
    return words | ({"trousers_color": a.trousers_color} if a.shows_trousers else {})


def test_held_out_clips_are_read_rightly() -> None:
    right = defaultdict(list)
    for index in range(60):
        clip = drawn(index, 12)
        readings = read_attributes(clip.frames_TYXC, find_people(clip.frames_TYXC))
        for name, word in truth_of(clip).items():
            score = agreement(readings[name], word)
            if score.known:
                right[name].append(score.value)
    accuracies = {name: np.mean(values) for name, values in right.items()}
    assert min(len(values) for values in right.values()) >= 50
    assert accuracies.pop("action") >= 0.97
    assert min(accuracies.values()) >= 0.98, accuracies


def test_soft_and_grainy_clips_are_read_nearly_as_well() -> None:
    right = []
    for index in range(20):
        clip = drawn(index, 12)
        spoiled = grainy(blurred(clip.frames_TYXC, 1.2), 5)
        readings = read_attributes(spoiled, find_people(spoiled))
        right += [readings[name].word == word for name, word in truth_of(clip).items()]
    assert np.mean(right) >= 0.93


@pytest.mark.parametrize("part", ["shirt", "trousers"])
def test_clothes_of_every_other_colour_are_read_as_that_colour(part: str) -> None:
    looks = plan_clip(SEED, 8, held_out=True)
    looks = dataclasses.replace(looks, framing="full", action="standing")
    for color in CLOTHES_COLORS:
        dressed = dataclasses.replace(looks, **{f"{part}_color": color})
        clip = draw_clip(SEED, 8, attributes=dressed, num_frames=3)
        assert read_color(clip.frames_TYXC, find_people(clip.frames_TYXC), part).word == color


def test_clothes_recoloured_after_the_fact_are_not_what_the_caption_said() -> None:
    for index in range(6):
        clip = drawn(index, 6)
        inverted = np.where(
            (clip.mask_TYX > 127)[..., None], 255 - clip.frames_TYXC, clip.frames_TYXC
        )
        found = find_people(clip.frames_TYXC)
        word = read_color(inverted, found, "shirt").word
        assert word != clip.attributes.shirt_color


def test_every_scene_is_read_and_a_person_cut_out_of_it_is_not() -> None:
    for scene in SCENES:
        looks = dataclasses.replace(plan_clip(SEED, 5), scene=scene)
        clip = draw_clip(SEED, 5, attributes=looks, num_frames=3)
        found = find_people(clip.frames_TYXC)
        assert read_scene(clip.frames_TYXC, found).word == scene
        cut_out = np.where((clip.mask_TYX > 127)[..., None], clip.frames_TYXC, [255, 0, 255])
        lost = read_scene(cut_out.astype(np.uint8), found)
        assert lost == Reading(None, "no known scene is near")


def test_a_still_picture_of_an_action_is_not_that_action() -> None:
    """Grain and softness, as of a video that does not move, do not count as motion."""
    for action in ("walking", "dancing", "clapping", "waving", "turning"):
        clip = clip_of(action)
        size = clip.frames_TYXC.shape[1:3]
        assert read_action(find_people(clip.frames_TYXC), size).word == action
        still = grainy(np.repeat(clip.frames_TYXC[5:6], 24, axis=0), 4)
        assert read_action(find_people(still), size).word in ("standing", "pointing")


@pytest.mark.parametrize(("size", "aside"), [((128, 192), (32, 0)), ((192, 128), (0, 64))])
def test_an_action_is_the_same_wherever_the_person_stands_in_a_longer_picture(
    size: tuple[int, int], aside: tuple[int, int]
) -> None:
    for index in range(40):
        found = find_people(drawn(index, 12).frames_TYXC)
        moved = dataclasses.replace(found, points_TJ2=found.points_TJ2 + np.float32(aside))
        assert read_action(moved, size) == read_action(found, (128, 128)), index


@pytest.mark.parametrize("size", [(96, 144), (144, 96)])
def test_actions_are_read_in_pictures_that_are_not_square(size: tuple[int, int]) -> None:
    right = []
    for index in range(40):
        clip = draw_clip(SEED, index, held_out=True, num_frames=12, height=size[0], width=size[1])
        read = read_action(find_people(clip.frames_TYXC), size)
        right.append(read.word == clip.attributes.action)
    assert np.mean(right) >= 0.85


def test_an_action_is_read_at_other_frame_rates_and_not_from_too_little() -> None:
    clip = clip_of("jumping")
    found = find_people(clip.frames_TYXC)
    size = (128, 128)
    assert read_action(found, size).word == "jumping"
    twice = find_people(np.repeat(clip.frames_TYXC, 2, axis=0))
    assert read_action(twice, size, fps=16.0).word == "jumping"
    few = find_people(clip.frames_TYXC[:5])
    assert "too short" in read_action(few, size).reason


def test_bald_heads_are_told_from_hair_and_one_colour_from_neither() -> None:
    standing = dataclasses.replace(plan_clip(SEED, 2), framing="half", action="standing")
    for skin, style, color, expected in (
        ("pale", "bald", "black", BALD),
        ("tan", "bald", "blond", BALD),
        ("pale", "short", "black", "black"),
        ("dark", "long", "blond", "blond"),
        ("dark", "bald", "blond", None),
    ):
        looks = dataclasses.replace(standing, skin=skin, hair_style=style, hair_color=color)
        clip = draw_clip(SEED, 2, attributes=looks, num_frames=3)
        read = read_hair(clip.frames_TYXC, find_people(clip.frames_TYXC))
        assert read.word == expected, (skin, style, color, read)


def test_hair_and_skin_are_those_of_the_whole_clip_at_once() -> None:
    """Frame by frame, for the sake of memory, the same pixels are chosen and averaged."""
    clip = drawn(3, 40)
    frames_TYXC, found = clip.frames_TYXC, find_people(clip.frames_TYXC)
    face_T2 = found.points_TJ2[:, [0, 14, 15]].mean(axis=1)
    reach_T = np.maximum(0.9 * np.linalg.norm(face_T2 - found.points_TJ2[:, 1], axis=-1), 3) ** 2
    rows_YX, columns_YX = np.indices(frames_TYXC.shape[1:3])
    across = columns_YX - face_T2[:, 0, None, None]
    down = rows_YX - face_T2[:, 1, None, None]
    head_TYX = across**2 + down**2 < reach_T[:, None, None]
    assert np.array_equal(np.stack([*attributes._head_masks(found)]), head_TYX)
    for chosen_TYX in (head_TYX, part_of(found, "shirt") > 0.75, part_of(found, "other") > 0.75):
        pixels_N3 = frames_TYXC[chosen_TYX]
        every = max(1, len(pixels_N3) // 20_000)
        middle = np.median(to_lab(pixels_N3[None, ::every])[0], axis=0)
        assert np.array_equal(attributes._middle_color(frames_TYXC, chosen_TYX), middle)
    assert every > 1


def test_a_reference_is_told_from_everybody_elses() -> None:
    own, others = [], []
    portraits = [read_identity(drawn(index, 12).reference_YXC) for index in range(24)]
    for index in range(24):
        clip = drawn(index, 12)
        readings = read_attributes(clip.frames_TYXC, find_people(clip.frames_TYXC))
        own.append(identity(readings, portraits[index]).value)
        others.append(identity(readings, portraits[(index + 1) % 24]).value)
    assert np.mean(own) >= 0.97
    assert np.mean(others) < 0.4


def test_agreement_counts_what_cannot_be_read_as_wrong_unless_nobody_could() -> None:
    assert agreement(Reading("red"), "red").value == 1
    assert agreement(Reading("blue"), "red").value == 0
    assert agreement(Reading(None, "no shirt to be seen"), "red").value == 0
    assert not agreement(Reading(None, "hair and skin have one colour"), "brown").known


def test_a_reference_without_anybody_is_no_identity() -> None:
    nobody = dict.fromkeys(
        ("skin", "hair_color", "shirt_color", "trousers_color"), Reading(None, "nobody")
    )
    assert not identity(nobody, nobody).known
