"""Words read from drawn clips: right on the truth, wrong or missing when the clip is spoiled."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

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
from musev.quality.pose import find_people
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
    attributes = plan_clip(SEED, 8, held_out=True)
    attributes = dataclasses.replace(attributes, framing="full", action="standing")
    for color in CLOTHES_COLORS:
        dressed = dataclasses.replace(attributes, **{f"{part}_color": color})
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
        attributes = dataclasses.replace(plan_clip(SEED, 5), scene=scene)
        clip = draw_clip(SEED, 5, attributes=attributes, num_frames=3)
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
    attributes = dataclasses.replace(plan_clip(SEED, 2), framing="half", action="standing")
    for skin, style, color, expected in (
        ("pale", "bald", "black", BALD),
        ("tan", "bald", "blond", BALD),
        ("pale", "short", "black", "black"),
        ("dark", "long", "blond", "blond"),
        ("dark", "bald", "blond", None),
    ):
        looks = dataclasses.replace(attributes, skin=skin, hair_style=style, hair_color=color)
        clip = draw_clip(SEED, 2, attributes=looks, num_frames=3)
        read = read_hair(clip.frames_TYXC, find_people(clip.frames_TYXC))
        assert read.word == expected, (skin, style, color, read)


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
