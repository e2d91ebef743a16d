"""Prompts with ``{attribute}`` slots, filled from a task's other keys as the original fills them.

Where the original picks a word at random, the pick follows from the task's name: the same manifest
must give the same clip.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from musev.errors import RequestError

# Slots whose word follows the value: hair "long" reads "long hair" (ALGORITHM.md section 15).
_VALUE_THEN_NAME = frozenset(
    "eyes hair background skin face smile nose mouth necklace irises lighting".split()
)
# Order of the one preset template, for prompts with a plain {}.
_PORTRAIT = (
    "age sex singing country lighting headwear eyes irises hair skin face smile expression clothes "
    "nose mouth beard necklace style keywords render"
).split()
# What an empty attribute may become (upstream musev/auto_prompt/attributes/human.py).
_IF_EMPTY = {
    "env": ("east asian architecture", "fireworks", "snow, snowflakes", "snowing, snowflakes"),
    "decoration": ("chinese knot", "flowers", "food", "lanterns", "red envelop"),
    "festival": ("new year",),
    "spring_headwear": ("rabbit ears", "rabbit ears, fur hat"),
    "spring_clothes": (
        "mittens,chinese clothes",
        "mittens,fur trim",
        "mittens,red scarf",
        "mittens,winter clothes",
    ),
    "animal": ("rabbit", "holding rabbits"),
}
# The original's RenderMap (upstream musev/auto_prompt/attributes/render.py; three of the texts are
# also in goldens functions/auto_prompt.json and tasks_custom.json).
_RENDERS = {
    "Epic": "artstation, epic environment, highly detailed, 8k, HD",
    "HD": "8k, highly detailed",
    "EpicHD": "hyper detailed, beautiful lighting, epic environment, octane render, cinematic, 8k",
    "Digital": "detailed illustration, crisp lines, digital art, 8k, trending on artstation",
    "Unreal1": "artstation, concept art, smooth, sharp focus, illustration, unreal engine 5, 8k",
    "Unreal2": "concept art, octane render, artstation, epic environment, highly detailed, 8k",
}
_MIN_FACE_SHARE = 0.02  # smaller faces are not spoken of (upstream InsightFace attribute)
_FACE_WORDS = {"girl": "gorgeous, kawaii, colorful", "boy": "handsome, elegant"}

_KEYWORD_TEMPLATE = re.compile(r"\{.+\}")
_SLOT = re.compile(r"\{([^{}]*)\}")
_COMMAS = re.compile(r"(?:, *)+")


def fill_prompt(
    template: str, attributes: Mapping[str, Any], *, preset: str | None, name: str = ""
) -> list[str]:
    """Fill a prompt template; a prompt without slots comes back untouched.

    Args:
        template: Prompt with ``{attribute}`` slots anywhere, or one plain ``{}`` for the preset.
        attributes: The task's keys and values.
        preset: Name of the preset that ``{}`` stands for; only ``portrait`` exists.
        name: The task's name; decides what is picked where the original picks at random.

    Returns:
        The prompts: one, or one for each value of ``render``.

    Raises:
        RequestError: If an attribute is missing, or cannot be read.

    Source:
        Upstream auto_prompt; ALGORITHM.md section 15. Any filled prompt, and only a filled one, has
        each comma followed by exactly one space.
    """
    if _KEYWORD_TEMPLATE.search(template):
        names = list(dict.fromkeys(_SLOT.findall(template)))
        slots = {slot: _phrases(slot, attributes, name) for slot in names}
    elif "{" not in template:
        return [template]
    elif preset != "portrait":
        raise RequestError(
            f"prompt {template!r} has a plain {{}} but template_name is {preset!r}. "
            "Set template_name: portrait, or name the attribute inside the braces."
        )
    else:
        slots = {"": _portrait(attributes, name)}
    filled = [template]
    for slot, phrases in slots.items():
        filled = [text.replace(f"{{{slot}}}", phrase) for text in filled for phrase in phrases]
    return [_COMMAS.sub(", ", text) for text in filled]


def _portrait(attributes: Mapping[str, Any], task: str) -> list[str]:
    joined: list[list[str]] = [[]]
    for name in _PORTRAIT:
        if name in attributes:
            phrases = _phrases(name, attributes, task)
            joined = [[*done, text] for done in joined for text in phrases]
    return [", ".join(text for text in parts if text) for parts in joined]


def _phrases(name: str, attributes: Mapping[str, Any], task: str) -> list[str]:
    if not name.isidentifier():
        raise RequestError(
            f"template slot {{{name}}} is not the name of an attribute. "
            "Slots hold one name each, such as {hair}."
        )
    if name not in attributes:
        raise RequestError(
            f"the prompt names {{{name}}} but the task has no key {name!r}. Add it to the task."
        )
    value = attributes[name]
    if name == "insight_face":
        return [_people(value)]
    parts = [part.strip() for part in str(value).split(",")] if value is not None else [""]
    if not any(parts) and name in _IF_EMPTY:
        return [_pick(_IF_EMPTY[name], f"{task}:{name}")]
    special = _SPECIAL.get(name)
    if special is not None:
        return special(parts)
    if name in _VALUE_THEN_NAME:
        return [", ".join(f"{part} {name}" if part else "" for part in parts)]
    return [", ".join(parts)]


def _pick(choices: tuple[str, ...], key: str) -> str:
    """The same choice for the same key, on any machine."""
    digest = hashlib.sha256(f"musev:attribute:{key}".encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]


def _age(parts: list[str]) -> list[str]:
    return [", ".join(f"{part}-year-old" if part else "" for part in parts)]


def _render(parts: list[str]) -> list[str]:
    return [_RENDERS.get(part, part) for part in parts]


def _people(value: Any) -> str:
    """Words for the faces that a detector found; they are given as JSON.

    Source:
        Upstream InsightFace attribute; goldens functions/auto_prompt.json.
    """
    if value in (None, ""):
        return ""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        whole_body = found["image_type"] == "body"
        least = 0 if whole_body else _MIN_FACE_SHARE
        faces = [face for face in found["info"] if face.get("ratio", 1) >= least]
        sexes = [] if whole_body else ["boy" if face["gender"] else "girl" for face in faces]
        dark = ["african, dark skin"] if any(face.get("black") for face in faces) else []
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RequestError(
            "insight_face must be JSON such as "
            '{"image_type": "face", "info": [{"ratio": 0.5, "gender": 0}]}. '
            "Write it so, or describe the people in the prompt."
        ) from None
    if whole_body:
        return "".join(dark)
    if not faces:
        return ""
    counts = [f"{n}{sex}{'s' * (n > 1)}" for sex in _FACE_WORDS if (n := sexes.count(sex))]
    focus = [] if "girl" in sexes else ["male focus"]
    looks = [_FACE_WORDS[sex] for sex in dict.fromkeys(sexes)]
    solo = ["solo"] if len(faces) == 1 else []
    closing = ["delicate face", "beautiful eyes"]
    return ", ".join([*dark, *counts, *focus, *looks, *closing, *solo])


_SPECIAL: dict[str, Callable[[list[str]], list[str]]] = {"age": _age, "render": _render}
