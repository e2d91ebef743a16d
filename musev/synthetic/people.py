"""Who is drawn: the attributes a caption can name, and the body and looks that go with them.

Owns the tables of colours and the draw of one person from a random stream. Knows nothing of poses
or pixels.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Color = tuple[int, int, int]

CLOTHES_COLORS: dict[str, Color] = {
    "red": (214, 40, 44),
    "orange": (247, 130, 22),
    "yellow": (250, 214, 40),
    "green": (38, 152, 62),
    "blue": (40, 84, 214),
    "purple": (134, 56, 176),
    "white": (240, 240, 240),
    "black": (38, 38, 44),
}
SKIN_COLORS: dict[str, Color] = {
    "pale": (250, 216, 190),
    "tan": (228, 176, 134),
    "brown": (168, 112, 74),
    "dark": (108, 70, 48),
}
HAIR_COLORS: dict[str, Color] = {
    "black": (34, 30, 32),
    "brown": (100, 62, 36),
    "blond": (232, 194, 104),
    "red": (184, 74, 32),
    "grey": (158, 158, 164),
}
EYE_COLORS: tuple[Color, ...] = ((70, 44, 28), (44, 82, 140), (52, 108, 66), (36, 32, 34))
HAIR_STYLES = ("short", "long", "curly", "bun", "tied", "bald")
SHIRT_SHAPES = ("short", "long", "none")
"""Length of the sleeves."""
TROUSERS_SHAPES = ("trousers", "shorts", "skirt")
SCENES = ("beach", "meadow", "night", "room", "desert", "snow", "stage")
FRAMINGS = ("full", "half", "portrait")
FRAMING_WEIGHTS = (0.6, 0.2, 0.2)

ACTION_FRAMINGS: dict[str, tuple[str, ...]] = {
    "waving": FRAMINGS,
    "walking": ("full",),
    "jumping": ("full",),
    "squatting": ("full",),
    "dancing": ("full", "half"),
    "clapping": FRAMINGS,
    "raising": ("full", "half"),
    "kicking": ("full",),
    "turning": FRAMINGS,
    "leaning": FRAMINGS,
    "bowing": ("full", "half"),
    "pointing": ("full", "half"),
    "standing": FRAMINGS,
}
"""Actions, each with the framings in which it can be told from the others."""
ACTIONS = tuple(ACTION_FRAMINGS)

HELD_OUT_ONE_IN = 20


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What a judge may ask about a clip; every value is a key of this module's tables."""

    shirt_color: str
    trousers_color: str
    shirt_shape: str
    trousers_shape: str
    hair_style: str
    hair_color: str
    skin: str
    scene: str
    action: str
    framing: str

    @property
    def hair(self) -> str:
        """Hair in one value: ``"long black"``, or ``"bald"``."""
        return "bald" if self.hair_style == "bald" else f"{self.hair_style} {self.hair_color}"

    @property
    def shows_trousers(self) -> bool:
        """Whether the framing shows what is worn below the waist."""
        return self.framing != "portrait"


@dataclass(frozen=True, kw_only=True)
class Body:
    """Lengths of one body as fractions of its height, measured between joints."""

    head_half_width: float
    head_half_height: float
    neck: float
    shoulder_half: float
    spine: float
    upper_arm: float
    forearm: float
    hip_half: float
    thigh: float
    shin: float
    ankle: float
    girth: float
    """Thickness of limbs and trunk relative to the average."""

    @property
    def hip_height(self) -> float:
        """Height of the hip joints above the ground, standing."""
        return self.ankle + self.shin + self.thigh

    @property
    def head_height(self) -> float:
        """Height of the head's centre above the ground, standing."""
        return self.hip_height + self.spine + self.neck


@dataclass(frozen=True, kw_only=True)
class Person:
    """One drawn person: body and exact colours."""

    body: Body
    shirt: Color
    trousers: Color
    shoes: Color
    skin: Color
    hair: Color
    eyes: Color
    shirt_shape: str
    trousers_shape: str
    hair_style: str
    fringe: float
    """How low the hair falls on the forehead, 0 to 1."""
    parting: float
    """Where the hair parts, -1 to 1 across the forehead."""


class RandomStream:
    """Uniform draws from a key; the same key gives the same draws on every machine and version.

    Python's own generator: its ``random()`` is promised to stay, and starts in microseconds.
    """

    def __init__(self, *key: int) -> None:
        digest = hashlib.sha256(",".join(str(part) for part in key).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:16], "big")).random

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number between ``low`` and ``high``."""
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        """Whether an event of this probability happens."""
        return self.uniform() < probability

    def pick(self, items: Sequence[Item], weights: Sequence[float] | None = None) -> Item:
        """One of ``items``, equally likely or by weight."""
        if weights is None:
            return items[int(self.uniform(0, len(items)))]
        ends = [*itertools.accumulate(weights)]
        return items[bisect.bisect_right(ends, self.uniform(0, ends[-1]))]


def draw_attributes(stream: RandomStream) -> Attributes:
    """Draw one clip's attributes, all combinations possible except unreadable framings."""
    action = stream.pick(ACTIONS)
    framings = ACTION_FRAMINGS[action]
    weights = [FRAMING_WEIGHTS[FRAMINGS.index(framing)] for framing in framings]
    colors = tuple(CLOTHES_COLORS)
    return Attributes(
        shirt_color=stream.pick(colors),
        trousers_color=stream.pick(colors),
        shirt_shape=stream.pick(SHIRT_SHAPES, (0.5, 0.4, 0.1)),
        trousers_shape=stream.pick(TROUSERS_SHAPES, (0.6, 0.2, 0.2)),
        hair_style=stream.pick(HAIR_STYLES, (3, 3, 2, 2, 2, 1)),
        hair_color=stream.pick(tuple(HAIR_COLORS)),
        skin=stream.pick(tuple(SKIN_COLORS)),
        scene=stream.pick(SCENES),
        action=action,
        framing=stream.pick(framings, weights),
    )


def is_held_out(attributes: Attributes) -> bool:
    """Whether this combination of clothes, scene and action is kept from training.

    One in twenty combinations (shirt colour x trousers colour x scene x action), fixed for ever
    by a hash of the four words.
    """
    a = attributes
    words = f"{a.shirt_color}|{a.trousers_color}|{a.scene}|{a.action}"
    digest = hashlib.sha256(words.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def draw_person(attributes: Attributes, stream: RandomStream) -> Person:
    """Draw the body and the exact colours of someone with these attributes."""
    return Person(
        body=draw_body_lengths(stream),
        shirt=_near(CLOTHES_COLORS[attributes.shirt_color], stream),
        trousers=_near(CLOTHES_COLORS[attributes.trousers_color], stream),
        shoes=stream.pick(((60, 44, 40), (232, 232, 236), (120, 74, 46), (36, 38, 48))),
        skin=_near(SKIN_COLORS[attributes.skin], stream),
        hair=_near(HAIR_COLORS[attributes.hair_color], stream),
        eyes=stream.pick(EYE_COLORS),
        shirt_shape=attributes.shirt_shape,
        trousers_shape=attributes.trousers_shape,
        hair_style=attributes.hair_style,
        fringe=stream.uniform(),
        parting=stream.uniform(-1, 1),
    )


def draw_body_lengths(stream: RandomStream) -> Body:
    """Draw a body: about five heads tall, the proportions of a tidy cartoon."""
    legs = stream.uniform(0.94, 1.04)
    arms = stream.uniform(0.95, 1.05)
    girth = stream.uniform(0.86, 1.22)
    head = stream.uniform(0.95, 1.08)
    return Body(
        head_half_width=0.078 * head * stream.uniform(0.95, 1.05),
        head_half_height=0.094 * head,
        neck=0.052 + 0.094 * head,
        shoulder_half=0.094 * stream.uniform(0.92, 1.1),
        spine=0.275 * stream.uniform(0.97, 1.03),
        upper_arm=0.148 * arms,
        forearm=0.13 * arms,
        hip_half=0.05 * stream.uniform(0.9, 1.15),
        thigh=0.205 * legs,
        shin=0.2 * legs,
        ankle=0.04,
        girth=girth,
    )


def _near(color: Color, stream: RandomStream, spread: float = 8) -> Color:
    """A colour close to the table's: never so far that its name changes."""
    shift = stream.uniform(-spread, spread)
    red, green, blue = (
        round(min(255.0, max(0.0, channel + shift + stream.uniform(-spread / 2, spread / 2))))
        for channel in color
    )
    return red, green, blue
