"""Captions say what the clip shows, nothing else, in a closed vocabulary."""

from __future__ import annotations

import pytest

from musev.synthetic.captions import (
    ACTION_PHRASES,
    HAIR_PHRASES,
    SCENE_PHRASES,
    VOCABULARY,
    draw_caption,
)
from musev.synthetic.people import (
    ACTIONS,
    CLOTHES_COLORS,
    HAIR_STYLES,
    SCENES,
    TROUSERS_SHAPES,
    Attributes,
    RandomStream,
    draw_attributes,
)
from musev.words import words_of

CASES = [(draw_attributes(RandomStream(1, i)), i) for i in range(600)]


def caption_of(attributes: Attributes, index: int) -> str:
    return draw_caption(attributes, RandomStream(2, index))


def test_the_vocabulary_is_small_closed_and_used_up() -> None:
    used = {word for a, i in CASES for word in words_of(caption_of(a, i))}
    assert used == set(VOCABULARY)
    assert 60 <= len(VOCABULARY) <= 80


def test_every_table_covers_its_attribute() -> None:
    assert set(SCENE_PHRASES) == set(SCENES)
    assert set(ACTION_PHRASES) == set(ACTIONS)
    assert set(HAIR_PHRASES) == set(HAIR_STYLES)


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_captions_name_clothes_action_and_scene(first: int) -> None:
    for attributes, index in CASES[first : first + 100]:
        caption = caption_of(attributes, index)
        article = "an" if attributes.shirt_color == "orange" else "a"
        assert f"{article} {attributes.shirt_color} shirt" in caption
        below = f"{attributes.trousers_color} {attributes.trousers_shape}"
        assert (below in caption) == attributes.shows_trousers
        assert any(phrase in caption for phrase in ACTION_PHRASES[attributes.action])
        assert any(phrase in caption for phrase in SCENE_PHRASES[attributes.scene])


def test_captions_name_nothing_that_is_not_there() -> None:
    for attributes, index in CASES:
        words = words_of(caption_of(attributes, index))
        allowed = {attributes.shirt_color, attributes.hair_color, attributes.skin}
        if attributes.shows_trousers:
            allowed.add(attributes.trousers_color)
        # "green grass" is the meadow's own.
        allowed |= {"green"} if attributes.scene == "meadow" else set()
        assert not (set(words) & set(CLOTHES_COLORS)) - allowed
        others = set(TROUSERS_SHAPES) - {attributes.trousers_shape}
        assert not set(words) & others
        for scene, phrases in SCENE_PHRASES.items():
            if scene != attributes.scene:
                assert not any(phrase in " ".join(words) for phrase in phrases)


def test_looks_are_named_sometimes_and_truly() -> None:
    named = 0
    for attributes, index in CASES:
        caption = caption_of(attributes, index)
        if "hair" in words_of(caption):
            named += 1
            phrase = HAIR_PHRASES[attributes.hair_style].format(color=attributes.hair_color)
            assert phrase in caption
        if "skin" in words_of(caption):
            assert f"{attributes.skin} skin" in caption
    assert 0.35 < named / len(CASES) < 0.65


def test_wording_varies_for_the_same_attributes() -> None:
    attributes = CASES[0][0]
    assert len({caption_of(attributes, index) for index in range(100)}) > 20
