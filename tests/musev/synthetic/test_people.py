"""Attributes, the held-out rule, and looks that keep their names."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from musev.synthetic.people import (
    ACTION_FRAMINGS,
    ACTIONS,
    CLOTHES_COLORS,
    FRAMINGS,
    HAIR_COLORS,
    SCENES,
    SKIN_COLORS,
    Attributes,
    RandomStream,
    draw_attributes,
    draw_body_lengths,
    draw_person,
    is_held_out,
)

PLAIN = Attributes(
    shirt_color="red",
    trousers_color="blue",
    shirt_shape="short",
    trousers_shape="trousers",
    hair_style="long",
    hair_color="black",
    skin="tan",
    scene="beach",
    action="waving",
    framing="full",
)


def change(**values: str) -> Attributes:
    return Attributes(**{**PLAIN.__dict__, **values})


ALL = [
    change(shirt_color=shirt, trousers_color=trousers, scene=scene, action=action)
    for shirt, trousers, scene, action in itertools.product(
        CLOTHES_COLORS, CLOTHES_COLORS, SCENES, ACTIONS
    )
]


def test_one_combination_in_twenty_is_held_out() -> None:
    share = sum(map(is_held_out, ALL)) / len(ALL)
    assert 0.04 < share < 0.06


@pytest.mark.parametrize("field", ["shirt_color", "trousers_color", "scene", "action"])
def test_every_single_value_is_both_trained_and_held_out(field: str) -> None:
    """Only combinations are new to a judge: a colour or action never seen would be unfair."""
    for held_out in (True, False):
        seen = {getattr(a, field) for a in ALL if is_held_out(a) == held_out}
        assert seen == {getattr(a, field) for a in ALL}


def test_held_out_depends_on_the_four_words_only() -> None:
    held = next(a for a in ALL if is_held_out(a))
    for other in ({"skin": "dark"}, {"framing": "half"}, {"hair_style": "bun"}):
        assert is_held_out(Attributes(**{**held.__dict__, **other}))


def test_the_rule_never_changes() -> None:
    """Weights trained yesterday must not have seen today's evaluation set."""
    first = [index for index, attributes in enumerate(ALL) if is_held_out(attributes)][:5]
    assert first == FIRST_HELD_OUT


FIRST_HELD_OUT = [34, 37, 70, 81, 91]


def test_attributes_cover_every_value_and_only_readable_framings() -> None:
    drawn = [draw_attributes(RandomStream(5, index)) for index in range(1500)]
    assert {a.action for a in drawn} == set(ACTIONS)
    assert {a.scene for a in drawn} == set(SCENES)
    assert {a.framing for a in drawn} == set(FRAMINGS)
    assert (
        {a.shirt_color for a in drawn} == {a.trousers_color for a in drawn} == set(CLOTHES_COLORS)
    )
    assert all(a.framing in ACTION_FRAMINGS[a.action] for a in drawn)


def nearest(color: tuple[int, int, int], table: dict[str, tuple[int, int, int]]) -> str:
    return min(table, key=lambda name: math.dist(color, table[name]))


def test_exact_colours_stay_nearest_to_their_name() -> None:
    for index in range(300):
        attributes = draw_attributes(RandomStream(6, index))
        person = draw_person(attributes, RandomStream(7, index))
        assert nearest(person.shirt, CLOTHES_COLORS) == attributes.shirt_color
        assert nearest(person.trousers, CLOTHES_COLORS) == attributes.trousers_color
        assert nearest(person.hair, HAIR_COLORS) == attributes.hair_color
        assert nearest(person.skin, SKIN_COLORS) == attributes.skin
        assert all(0 <= channel <= 255 for channel in (*person.shirt, *person.skin))


def test_colour_names_are_far_apart() -> None:
    for table in (CLOTHES_COLORS, SKIN_COLORS, HAIR_COLORS):
        for one, other in itertools.combinations(table.values(), 2):
            assert math.dist(one, other) > 70


def test_bodies_differ_and_add_up_to_their_height() -> None:
    bodies = [draw_body_lengths(RandomStream(index)) for index in range(200)]
    tops = np.array([body.head_height + body.head_half_height for body in bodies])
    assert 0.9 < tops.min() < tops.max() < 1.08
    assert np.ptp([body.girth for body in bodies]) > 0.2


def test_a_stream_repeats_and_keys_differ() -> None:
    def first(*key: int) -> list[float]:
        stream = RandomStream(*key)
        return [stream.uniform() for _ in range(3)]

    assert first(1, 2) == first(1, 2)
    assert len({tuple(first(*key)) for key in ((1, 2), (2, 1), (12,), (1, 2, 0))}) == 4


def test_pick_follows_its_weights() -> None:
    stream = RandomStream(3)
    picked = [stream.pick("abc", (1, 0, 3)) for _ in range(2000)]
    assert "b" not in picked
    assert picked.count("c") / len(picked) == pytest.approx(0.75, abs=0.05)


def test_hair_is_one_value() -> None:
    assert change(hair_style="bald").hair == "bald"
    assert PLAIN.hair == "long black"
