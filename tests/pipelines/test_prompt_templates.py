from __future__ import annotations

import json

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

    if "error" in golden or "insight_face" in golden["template"]:
        # The original raises KeyError or ValueError; faces found by a detector are refused by name.
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
    ],
)
def test_filling(template: str, attributes: dict[str, object], expected: list[str]) -> None:
    assert fill_prompt(template, attributes, preset=None) == expected


@pytest.mark.parametrize(
    ("template", "attributes", "phrase"),
    [
        ("{x}", {}, "no key 'x'"),
        ("{x.__class__}", {"x": 1}, "not the name of an attribute"),
        ("{env}", {"env": ""}, "random choice"),
        ("{render}", {"render": "Unreal1"}, "Unreal1"),
        ("a {}", {}, "template_name"),
    ],
)
def test_refusals(template: str, attributes: dict[str, object], phrase: str) -> None:
    with pytest.raises(RequestError, match=phrase):
        fill_prompt(template, attributes, preset=None)
