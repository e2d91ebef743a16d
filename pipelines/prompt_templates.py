"""Prompts with ``{attribute}`` slots, filled from a task's other keys as the original fills them.

Attributes whose value the original picks at random, or reads from tables that are not part of this
project, are refused by name: the same manifest must give the same clip.
"""

from __future__ import annotations

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
_RANDOM_IF_EMPTY = frozenset(
    "env decoration festival spring_headwear spring_clothes animal".split()
)
# As recorded from the original (goldens functions/auto_prompt.json and tasks_custom.json).
_RENDERS = {
    "Epic": "artstation, epic environment, highly detailed, 8k, HD",
    "HD": "8k, highly detailed",
    "Digital": "detailed illustration, crisp lines, digital art, 8k, trending on artstation",
}
_NOT_HERE = frozenset({"EpicHD", "Unreal1", "Unreal2"})

_KEYWORD_TEMPLATE = re.compile(r"\{.+\}")
_SLOT = re.compile(r"\{([^{}]*)\}")
_COMMAS = re.compile(r"(?:, *)+")


def fill_prompt(template: str, attributes: Mapping[str, Any], *, preset: str | None) -> list[str]:
    """Fill a prompt template; a prompt without slots comes back untouched.

    Args:
        template: Prompt with ``{attribute}`` slots anywhere, or one plain ``{}`` for the preset.
        attributes: The task's keys and values.
        preset: Name of the preset that ``{}`` stands for; only ``portrait`` exists.

    Returns:
        The prompts: one, or one for each value of ``render``.

    Raises:
        RequestError: If an attribute is missing, or cannot be filled the same way twice.

    Source:
        Upstream auto_prompt; ALGORITHM.md section 15. Any filled prompt, and only a filled one, has
        each comma followed by exactly one space.
    """
    if _KEYWORD_TEMPLATE.search(template):
        names = list(dict.fromkeys(_SLOT.findall(template)))
        slots = {name: _phrases(name, attributes) for name in names}
    elif "{" not in template:
        return [template]
    elif preset != "portrait":
        raise RequestError(
            f"prompt {template!r} has a plain {{}} but template_name is {preset!r}. "
            "Set template_name: portrait, or name the attribute inside the braces."
        )
    else:
        slots = {"": _portrait(attributes)}
    filled = [template]
    for name, phrases in slots.items():
        filled = [text.replace(f"{{{name}}}", phrase) for text in filled for phrase in phrases]
    return [_COMMAS.sub(", ", text) for text in filled]


def _portrait(attributes: Mapping[str, Any]) -> list[str]:
    joined: list[list[str]] = [[]]
    for name in _PORTRAIT:
        if name in attributes:
            joined = [[*done, text] for done in joined for text in _phrases(name, attributes)]
    return [", ".join(text for text in parts if text) for parts in joined]


def _phrases(name: str, attributes: Mapping[str, Any]) -> list[str]:
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
    parts = [part.strip() for part in str(value).split(",")] if value is not None else [""]
    if not any(parts) and name in _RANDOM_IF_EMPTY:
        raise RequestError(
            f"attribute {name!r} is empty, which asks for a random choice. Write one out."
        )
    special = _SPECIAL.get(name)
    if special is not None:
        return special(parts)
    if name in _VALUE_THEN_NAME:
        return [", ".join(f"{part} {name}" if part else "" for part in parts)]
    return [", ".join(parts)]


def _age(parts: list[str]) -> list[str]:
    return [", ".join(f"{part}-year-old" if part else "" for part in parts)]


def _render(parts: list[str]) -> list[str]:
    for part in parts:
        if part in _NOT_HERE:
            raise RequestError(
                f"render preset {part!r} of the original is not included. Write its words out."
            )
    return [_RENDERS.get(part, part) for part in parts]


def _insight_face(parts: list[str]) -> list[str]:
    raise RequestError(
        "attribute 'insight_face' (faces found by a detector) is not supported. "
        "Describe the people in the prompt."
    )


_SPECIAL: dict[str, Callable[[list[str]], list[str]]] = {
    "age": _age,
    "render": _render,
    "insight_face": _insight_face,
}
