from __future__ import annotations

import json
from typing import Any

import pytest

from musev.errors import RequestError
from pipelines.prompt_templates import fill_prompt
from tests.goldens import GOLDENS, have_goldens, require_goldens

FILE = GOLDENS / "pipeline" / "functions" / "auto_prompt.json"
CASES = range(len(json.loads(FILE.read_text()))) if have_goldens() else [0]


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_prompts_equal_the_originals(case: int) -> None:
    require_goldens()
    golden = json.loads(FILE.read_text())[case]

    def fill() -> list[str]:
        return fill_prompt(golden["template"], golden["attributes"], preset=golden["name"])

    if "error" in golden:  # KeyError or ValueError there, with a remedy here
        with pytest.raises(RequestError):
            fill()
        return
    expected = golden["out"] if isinstance(golden["out"], list) else [golden["out"]]
    assert fill() == expected


@pytest.mark.parametrize(
    ("template", "attributes", "expected"),
    [
        ("a,b,  c", {}, ["a,b,  c"]),  # nothing to fill: not even commas change
        ("{x},b,  c", {"x": 1.5}, ["1.5, b, c"]),
        ("{hair}", {"hair": "long black,short"}, ["long black hair, short hair"]),
        ("{a} {a}", {"a": "b"}, ["b b"]),
        ("{eyes}", {"eyes": ""}, [""]),
        ("{x}", {"x": "{y}"}, ["{y}"]),
        ("{env}", {"env": "forest"}, ["forest"]),
        ("{render}", {"render": "chalk"}, ["chalk"]),
    ],
)
def test_filling(template: str, attributes: dict[str, object], expected: list[str]) -> None:
    assert fill_prompt(template, attributes, preset=None) == expected


@pytest.mark.parametrize(
    ("template", "attributes", "phrase"),
    [
        ("{x}", {}, "no key 'x'"),
        ("{x.__class__}", {"x": 1}, "not the name of an attribute"),
        ("{insight_face}", {"insight_face": "two girls"}, "must be JSON"),
        ("{insight_face}", {"insight_face": '{"info": [1]}'}, "must be JSON"),
        ("a {}", {}, "template_name"),
    ],
)
def test_refusals(template: str, attributes: dict[str, object], phrase: str) -> None:
    with pytest.raises(RequestError, match=phrase):
        fill_prompt(template, attributes, preset=None)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            {"image_type": "face", "info": [{"ratio": 0.2, "gender": 1}]},
            "1boy, male focus, handsome, elegant, delicate face, beautiful eyes, solo",
        ),
        (
            {"image_type": "face", "info": [{"ratio": 0.2, "gender": 0}] * 2},
            "2girls, gorgeous, kawaii, colorful, delicate face, beautiful eyes",
        ),
        ({"image_type": "face", "info": [{"ratio": 0.01, "gender": 0}]}, ""),
        ({"image_type": "face", "info": []}, ""),
        ({"image_type": "body", "info": [{"black": False}]}, ""),
    ],
)
def test_words_for_faces(found: dict[str, Any], expected: str) -> None:
    attributes = {"insight_face": json.dumps(found)}
    assert fill_prompt("{insight_face}", attributes, preset=None) == [expected]


def test_a_random_pick_follows_from_the_tasks_name() -> None:
    def pick(name: str) -> str:
        (text,) = fill_prompt("{env}", {"env": ""}, preset=None, name=name)
        return text

    picked = [pick(f"task-{number}") for number in range(40)]
    assert picked == [pick(f"task-{number}") for number in range(40)]
    assert set(picked) == {
        "east asian architecture",
        "fireworks",
        "snow, snowflakes",
        "snowing, snowflakes",
    }
