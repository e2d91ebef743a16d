"""What a clip shows, in words: templates over a small closed vocabulary."""

from __future__ import annotations

import re

from musev.synthetic.people import (
    CLOTHES_COLORS,
    HAIR_COLORS,
    SKIN_COLORS,
    TROUSERS_SHAPES,
    Attributes,
    RandomStream,
)
from musev.words import words_of

SCENE_PHRASES = {
    "beach": ("on the beach", "on a beach", "by the sea"),
    "meadow": ("in a meadow", "on green grass", "in a field with flowers"),
    "night": ("at night", "under the stars"),
    "room": ("in a room", "in the room"),
    "desert": ("in the desert", "in a desert"),
    "snow": ("in the snow", "in a field with snow"),
    "stage": ("on a stage", "on stage"),
}
ACTION_PHRASES = {
    "waving": ("waving", "waving a hand"),
    "walking": ("walking",),
    "jumping": ("jumping",),
    "squatting": ("squatting",),
    "dancing": ("dancing",),
    "clapping": ("clapping", "clapping hands"),
    "raising": ("raising both arms", "raising both hands"),
    "kicking": ("kicking",),
    "turning": ("turning the head", "looking left and right"),
    "leaning": ("leaning left and right", "leaning to the side"),
    "bowing": ("bowing",),
    "pointing": ("pointing", "pointing to the side"),
    "standing": ("standing still", "standing"),
}
HAIR_PHRASES = {
    "short": "short {color} hair",
    "long": "long {color} hair",
    "curly": "curly {color} hair",
    "bun": "{color} hair in a bun",
    "tied": "tied {color} hair",
    "bald": "no hair",
}
FRAMING_PHRASES = {
    "full": ("",),
    "half": ("", "half body of "),
    "portrait": ("", "portrait of "),
}

TEMPLATES = (
    "{who} {clothes} {action} {scene}",
    "{who} {clothes} is {action} {scene}",
    "{scene}, {who} {clothes} is {action}",
    "{who} is {action} {scene}, {clothes}",
)


def draw_caption(attributes: Attributes, stream: RandomStream) -> str:
    """Word a caption: always clothes that show, action and scene; sometimes hair and skin.

    Args:
        attributes: What the clip shows.
        stream: Which wording.

    Returns:
        Lower case words and commas.
    """
    a = attributes
    person = stream.pick(("person", "figure"))
    hair = HAIR_PHRASES[a.hair_style].format(color=a.hair_color) if stream.chance(0.5) else ""
    skin = f"{a.skin} skin" if stream.chance(0.3) else ""
    looks = " and ".join(part for part in (hair, skin) if part)
    who = f"a {person} with {looks}" if looks else f"a {person}"
    who = stream.pick(FRAMING_PHRASES[a.framing]) + who
    clothes = f"{stream.pick(('in', 'wearing'))} {_clothes(a)}"
    action = stream.pick(ACTION_PHRASES[a.action])
    scene = stream.pick(SCENE_PHRASES[a.scene])
    template = stream.pick(TEMPLATES)
    return template.format(who=who, clothes=clothes, action=action, scene=scene)


def _clothes(attributes: Attributes) -> str:
    shirt = f"{attributes.shirt_color} shirt"
    article = "an" if shirt[0] in "aeiou" else "a"
    if not attributes.shows_trousers:
        return f"{article} {shirt}"
    below = f"{attributes.trousers_color} {attributes.trousers_shape}"
    if attributes.trousers_shape == "skirt":
        below = f"{'an' if below[0] in 'aeiou' else 'a'} {below}"
    return f"{article} {shirt} and {below}"


def _vocabulary() -> tuple[str, ...]:
    tables = (SCENE_PHRASES, ACTION_PHRASES, FRAMING_PHRASES)
    texts = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    texts += [phrase.replace("{color}", "") for phrase in HAIR_PHRASES.values()]
    texts += [re.sub(r"{\w+}", "", template) for template in TEMPLATES]
    texts += [*CLOTHES_COLORS, *HAIR_COLORS, *SKIN_COLORS, *TROUSERS_SHAPES]
    texts += ["a an person figure with and in wearing shirt skin"]
    return tuple(sorted({word for text in texts for word in words_of(text)}))


VOCABULARY = _vocabulary()
"""Every word that a caption can hold."""
