from __future__ import annotations

import json

import pytest

from musev.errors import ManifestError
from musev.negative_prompts import NEGATIVE_PROMPTS
from musev.registry import get_profile
from musev.settings import replace_setting, replace_settings
from pipelines.musev_tasks import (
    expand_sweeps,
    fill_templates,
    is_image_name,
    load_tasks,
    read_tasks,
)
from pipelines.resolve import resolve_rows
from pipelines.rows import WHOLE_ROW, BadCell
from tests.goldens import GOLDENS, have_goldens, require_goldens

FOLDER = GOLDENS / "pipeline" / "functions"
EXAMPLES = (
    [task["name"] for task in json.loads((FOLDER / "tasks_example.json").read_text())["tasks"]]
    if have_goldens()
    else ["missing"]
)


def golden(name: str) -> dict:
    require_goldens()
    return json.loads((FOLDER / name).read_text())


IMAGE_NAMES = (
    json.loads((FOLDER / "is_image.json").read_text()) if have_goldens() else [["missing", False]]
)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "expected"), IMAGE_NAMES)
def test_what_the_original_takes_for_an_image(name: str, expected: bool) -> None:
    require_goldens()
    assert is_image_name(name) is expected


@pytest.mark.parity
def test_references_resolve_as_in_the_original() -> None:
    custom = golden("tasks_custom.json")
    assert load_tasks(custom["yaml"], "tasks.yaml") == custom["raw"]


@pytest.mark.parity
def test_sweeps_and_templates_expand_as_in_the_original() -> None:
    custom = golden("tasks_custom.json")
    found = [
        filled
        for task in custom["raw"]
        for swept in expand_sweeps(task)
        for filled in fill_templates(swept)
    ]
    assert found == custom["tasks"]


@pytest.mark.parity
@pytest.mark.parametrize("name", EXAMPLES)
def test_prompts_of_the_original_example(name: str) -> None:
    tasks = golden("tasks_example.json")["tasks"]
    task = next(task for task in tasks if task["name"] == name)
    written = {key: value for key, value in task.items() if key != "prompt_hash"}
    written["prompt"] = written.pop("origin_prompt")
    (filled,) = fill_templates(written)
    assert filled["prompt"] == task["prompt"]


def test_keys_become_columns() -> None:
    (row,) = read_tasks(
        """
- name: yongen
  condition_images: ./a.png
  refer_image: ${.condition_images}
  ipadapter_image: ${.refer_image}
  video_path: null
  height: 1308
  width: 736
  img_length_ratio: 0.957
  eye_blinks_factor: 1.8
  prompt: "(eye blinks:{eye_blinks_factor}),1boy"
  video_negative_prompt: V1
  negative_prompt: V5
  seed: 3
""",
        "t.yaml",
    )
    assert row == {
        "request_id": "yongen",
        "condition_image": "./a.png",
        "reference_image": "./a.png",
        "ip_adapter_image": "./a.png",
        "height": 1308,
        "width": 736,
        "img_length_ratio": 0.957,
        "prompt": "(eye blinks:1.8), 1boy",
        "negative_prompt": NEGATIVE_PROMPTS["V1"],
        "first_frame_negative_prompt": NEGATIVE_PROMPTS["V5"],
        "seed": 3,
        "extra": '{"eye_blinks_factor":1.8}',
    }


def test_a_sweep_gives_every_row_its_own_name_and_typed_numbers() -> None:
    rows = read_tasks('- {name: s, prompt: "a|b", img_length_ratio: "0.5|1.25"}', "t.yaml")
    assert [row["request_id"] for row in rows] == ["s-1", "s-2", "s-3", "s-4"]
    assert [row["img_length_ratio"] for row in rows] == [0.5, 1.25, 0.5, 1.25]
    assert [row["prompt"] for row in rows] == ["a", "a", "b", "b"]


def test_a_task_without_a_name_is_named_by_its_place() -> None:
    rows = read_tasks("- {prompt: a}\n- {prompt: b}", "t.yaml")
    assert [row["request_id"] for row in rows] == ["0", "1"]


def test_tasks_of_one_name_are_told_apart() -> None:
    rows = read_tasks("- {name: a, prompt: p}\n- {name: a, prompt: 'q|r'}\n- {name: a}", "t.yaml")
    assert [row["request_id"] for row in rows] == ["a", "a-1", "a-2", "a-3"]


def test_a_video_of_control_maps_arrives() -> None:
    rows = read_tasks("- {name: a, prompt: p, video_path: a.mp4, video_is_middle: true}", "t.yaml")
    seeded = replace_setting(get_profile("mini"), "weights.random_seed", "0")
    (request,), failures = resolve_rows(rows, seeded, "file:///x")
    assert failures == []
    assert (request.video, request.control) == ("file:///x/a.mp4", ("openpose",))


def test_upstreams_rounding_holds_without_a_ratio() -> None:
    (row,) = read_tasks("- {name: a, prompt: p, width: 150, height: 130}", "t.yaml")
    requests, failures = resolve_rows([row], get_profile("mini"), "file:///x")
    assert failures == []
    assert (requests[0].width, requests[0].height) == (144, 128)  # multiples of 16 in this profile


@pytest.mark.parametrize(
    ("keys", "column", "phrase"),
    [
        ("condition_images: a.mp4", "condition_image", "Give it as video_path"),
        ("condition_images_index: [0, -1]", "condition_index", "condition_index"),
        ("video_is_middle: true", "video_is_control", "needs a video"),
        ("video_negative_prompt: V2", "negative_prompt", "weights.embeddings.badhandv4"),
        ("prompt: '{age}'", "prompt", "no key 'age'"),
        ("widht: 64", "widht", "'width'"),
        ("height: tall", "height", "whole number"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(keys: str, column: str, phrase: str) -> None:
    base = "" if keys.startswith("prompt") else "  prompt: p\n"
    rows = read_tasks(f"- name: a\n{base}  {keys}\n- {{name: b, prompt: fine}}", "t.yaml")
    requests, failures = resolve_rows(rows, get_profile("mini"), "file:///x")
    assert [request.request_id for request in requests] == ["b"]
    assert (failures[0].request_id, failures[0].column) == ("a", column)
    assert phrase in failures[0].message


def test_a_negative_prompt_with_learnt_words_needs_their_files() -> None:
    rows = read_tasks(
        "- {name: two, prompt: p, video_negative_prompt: V2}\n"
        "- {name: four, prompt: p, negative_prompt: V4}",
        "t.yaml",
    )
    held = replace_settings(
        get_profile("mini"),
        {
            f"weights.embeddings.{token}": "e.pt"
            for token in ("badhandv4", "ng_deepnegative_v1_75t")
        },
    )
    (request,), (failure,) = resolve_rows(rows, held, "file:///x")
    assert request.negative_prompt == NEGATIVE_PROMPTS["V2"]
    assert (failure.request_id, failure.column) == ("four", "negative_prompt")
    assert "EasyNegativeV2, bad_prompt_version2-neg" in failure.message


def test_several_images_at_any_place_drawn_anew() -> None:
    rows = read_tasks(
        "- {name: a, prompt: p, condition_images: [a.png, b.png], condition_images_index: [0, -1],"
        " redraw_condition_image: true, refer_image: [c.png, d.png], face_image: e.png,"
        " width: 64, height: 64, num_frames: 9}",
        "t.yaml",
    )
    (request,), failures = resolve_rows(rows, get_profile("mini"), "file:///x")
    assert failures == []
    assert request.condition_image == ("file:///x/a.png", "file:///x/b.png")
    assert (request.condition_index, request.redraw) == ((0, -1), True)
    assert request.reference_image == ("file:///x/c.png", "file:///x/d.png")
    assert request.face_image == "file:///x/e.png"


def test_harmless_values_of_later_keys_pass() -> None:
    rows = read_tasks(
        "- {name: a, prompt: p, redraw_condition_image: false, condition_images_index: [0],"
        " condition_images: [a.png], video_has_condition: true, width: 64, height: 64}",
        "t.yaml",
    )
    requests, failures = resolve_rows(rows, get_profile("mini"), "file:///x")
    assert failures == []
    assert requests[0].condition_image == "file:///x/a.png"


def test_a_broken_reference_costs_only_its_task() -> None:
    rows = read_tasks("- {name: a, prompt: '${.nothing}'}\n- {name: b, prompt: p}\n- 5", "t.yaml")
    assert isinstance(rows[0][WHOLE_ROW], BadCell)
    assert rows[1]["request_id"] == "b"
    assert "not a map" in rows[2][WHOLE_ROW].reason


@pytest.mark.parametrize("text", ["a: [", "name: a", "- a: 1\n  a: 2", "just text"])
def test_a_file_that_is_no_task_list(text: str) -> None:
    with pytest.raises(ManifestError, match=r"t\.yaml"):
        read_tasks(text, "t.yaml")
