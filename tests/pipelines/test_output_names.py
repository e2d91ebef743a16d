from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.output_names import (
    NameParts,
    clean_name,
    short_hash,
    stem_of,
    text2video_name,
    video2video_name,
)
from tests.goldens import GOLDENS, have_goldens, require_goldens

FOLDER = GOLDENS / "pipeline" / "functions"


def recorded(name: str) -> Any:
    return json.loads((FOLDER / name).read_text()) if have_goldens() else None


NAMES = recorded("names.json") or {"clean": [("", "")], "signature5": [("", "")]}
CASES = recorded("output_names.json") or [{}]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "expected"), NAMES["clean"])
def test_a_cleaned_name_equals_the_originals(name: str, expected: str) -> None:
    require_goldens()
    assert clean_name(name) == expected


@pytest.mark.parity
@pytest.mark.parametrize(("text", "expected"), NAMES["signature5"])
def test_a_hash_equals_the_originals(text: str, expected: str) -> None:
    require_goldens()
    assert short_hash(text) == expected


def test_a_prompts_hash_is_that_of_its_name_in_the_original() -> None:
    tasks = recorded("tasks_example.json")
    if tasks is None:
        pytest.skip("no goldens")
    for task in tasks["tasks"]:
        assert short_hash(task["prompt"]) == task["prompt_hash"]


@pytest.mark.parity
@pytest.mark.parametrize("number", range(len(CASES)))
def test_output_names_equal_the_originals(number: int) -> None:
    require_goldens()
    case = CASES[number]
    given = case["vars"]
    parts = NameParts(
        model=given["model_name"],
        reference_net=given["referencenet_model_name"],
        task=given["test_data_name"],
        width=given["test_data_width"],
        height=given["test_data_height"],
        time_size=given["time_size"],
        num_shots=given["n_batch"],
        seed=given["test_data_seed"],
        prompt_hash=given["prompt_hash"],
        img_weight=given["test_data_img_weight"],
        motion_speed=given["test_data_motion_speed"],
        strength=given["strength"],
        guidance_scale=given["guidance_scale"],
        video_guidance_scale=given["video_guidance_scale"],
        condition=given["test_data_condition_images_name"],
        redraw=given["test_data_redraw_condition_image"],
        w_ind_noise=given["test_data_w_ind_noise"],
        negative=given["test_data_video_negative_prompt_name"],
        reference=given["test_data_refer_image_name"],
        face=given["test_data_refer_face_image_name"],
        which=given["which2video_name"],
        video_steps=given["video_num_inference_steps"],
        control=given["controlnet_name_str"],
        video_strength=given["video_strength"],
    )
    assert text2video_name(parts) == case["t2v"]
    assert video2video_name(parts) == case["v2v"]


@pytest.mark.parametrize(
    ("paths", "stem"),
    [([], "no"), (["a/b.c.png"], "b"), (["s3://x/a.png", "file:///b.jpg"], "a_b")],
)
def test_pictures_are_called_by_their_names(paths: list[str], stem: str) -> None:
    assert stem_of(paths) == stem
