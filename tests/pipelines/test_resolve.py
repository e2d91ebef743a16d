from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from musev.config import Profile, WeightsConfig
from musev.errors import ConfigError
from musev.registry import get_profile
from musev.settings import replace_setting
from pipelines.resolve import read_image_size, resolve_rows, seed_for
from pipelines.rows import MANIFEST_COLUMNS, WHOLE_ROW, BadCell, request_from_json, request_to_json
from tests.goldens import GOLDENS, have_goldens, require_goldens

MINI = get_profile("mini")
SEEDED = dataclasses.replace(MINI, weights=WeightsConfig(random_seed=0))
BASE = "file:///manifest"


def one(row: dict[str, Any], profile: Profile = MINI, **options: Any) -> Any:
    """Resolve one row; the request, or the failure."""
    requests, failures = resolve_rows([row], profile, BASE, **options)
    (outcome,) = [*requests, *failures]
    return outcome


def good(**values: Any) -> dict[str, Any]:
    return {"request_id": "a", "prompt": "p", **values}


def test_null_takes_the_profiles_value() -> None:
    nulls = dict.fromkeys(MANIFEST_COLUMNS)
    request = one(nulls | good())
    assert (request.num_frames, request.fps) == (13, 8.0)
    assert (request.width, request.height) == (128, 128)
    assert request.sampling == dataclasses.replace(request, sampling=MINI.sampling).sampling
    assert request.profile == "mini"
    assert request.seed == seed_for("a")
    assert request.extra is None


def video(**values: Any) -> dict[str, Any]:
    return good(video="poses.mp4", video_is_control=True, **values)


def test_a_control_video_takes_the_only_controlnet_and_its_own_length() -> None:
    request = one(video(), SEEDED)
    assert request.media == {"video": "file:///manifest/poses.mp4"}
    assert (request.video_is_control, request.control) == (True, ("openpose",))
    assert (request.control_scale, request.num_frames) == ((1.0,), 0)
    assert request_from_json(request_to_json(request)) == request
    assert one(video(num_frames=7), SEEDED).num_frames == 7


def test_controlnets_are_named_and_weighted_one_by_one() -> None:
    two = replace_setting(SEEDED, "weights.controlnets.depth", "/nets/depth")
    request = one(video(control=["depth", "openpose"], control_scale=[0.5, 2]), two)
    assert (request.control, request.control_scale) == (("depth", "openpose"), (0.5, 2.0))
    assert one(video(control=["depth"]), two).control_scale == (1.0,)
    failure = one(video(), two)
    assert failure.column == "control"
    assert "several ControlNets (depth, openpose)" in failure.message


PUBLISHED = dataclasses.replace(MINI, weights=WeightsConfig(t2i="a", motion="b"))


@pytest.mark.parametrize(
    ("row", "profile", "column", "phrase"),
    [
        ({"video_is_control": True}, MINI, "video_is_control", "has none. Give a video"),
        ({"control": ["openpose"]}, MINI, "control", "needs a video"),
        ({"control_scale": [0.5]}, MINI, "control_scale", "needs a video"),
        (video(control=["dpeth"]), SEEDED, "control", "hold only openpose. Name"),
        (video(control=["a/b"]), SEEDED, "control", "weights.controlnets.NAME=FOLDER"),
        (video(control=["openpose"] * 2), SEEDED, "control", "named twice"),
        (video(control_scale=[1, 1]), SEEDED, "control_scale", "2 numbers for 1 names"),
        (video(), PUBLISHED, "video", "no ControlNet. Add one with --set weights.controlnets.open"),
        (video(condition_image="c.png", num_frames=1), SEEDED, "num_frames", "at least 2"),
        (video(start_from_video=True), SEEDED, "start_from_video", "exclude each other"),
        ({"start_from_video": True}, MINI, "start_from_video", "needs a video"),
        (video(control_end=[0.5, 1.0]), SEEDED, "control_end", "2 numbers for 1 names"),
    ],
)
def test_control_that_cannot_be_honoured_is_refused_in_words(
    row: dict[str, Any], profile: Profile, column: str, phrase: str
) -> None:
    failure = one(good(**row), profile)
    assert failure.column == column
    assert phrase in failure.message
    assert f"column {column!r}" in failure.message


def test_control_columns_that_ask_for_nothing_are_nothing() -> None:
    nothing = {"control": [], "control_scale": [1.0], "video_is_control": False}
    assert one(good(**nothing)) == one(good())


def test_every_supported_column_arrives() -> None:
    request = one(
        good(
            negative_prompt="n",
            condition_image="c.png",
            reference_image="/r.png",
            ip_adapter_image="s3://b/i.png",
            num_frames=24,
            fps=12,
            width=64,
            height=32,
            seed=0,
            steps=3,
            guidance_scale=4,
            guidance_scale_end=1.5,
            guidance_schedule="two_stage",
            window=3,
            overlap=1,
            layout="rotating",
            blend="gaussian",
            motion_speed=2,
            w_ind_noise=0.25,
            img_weight=0,
            extra={"k": 1},
        )
    )
    assert request.media == {
        "condition_image": "file:///manifest/c.png",
        "reference_image": "file:///r.png",
        "ip_adapter_image": "s3://b/i.png",
    }
    assert (request.negative_prompt, request.num_frames, request.fps) == ("n", 24, 12.0)
    assert (request.width, request.height, request.seed) == (64, 32, 0)
    sampling = request.sampling
    assert (sampling.num_steps, sampling.motion_speed) == (3, 2.0)
    assert (sampling.w_ind_noise, sampling.img_weight) == (0.25, 0.0)
    assert dataclasses.astuple(sampling.guidance) == (4.0, 1.5, "two_stage", "with_reference")
    assert dataclasses.astuple(sampling.windows)[:4] == (3, 1, "rotating", "gaussian")
    assert sampling.windows.settle_steps == MINI.sampling.windows.settle_steps
    assert request.extra == '{"k":1}'
    assert request_from_json(request_to_json(request)) == request


def test_the_columns_of_flows_arrive() -> None:
    request = one(
        good(
            condition_image=["c.png", "/d.png"],
            condition_index=[0, -1],
            redraw=True,
            redraw_strength=0.5,
            reference_image='["r.png", "s.png"]',
            video="v.mp4",
            start_from_video=True,
            strength=0.25,
            histogram_match=True,
            first_frame_negative_prompt="blur",
            num_frames=9,
        )
    )
    assert request.media == {
        "condition_image": "file:///manifest/c.png",
        "condition_image.1": "file:///d.png",
        "reference_image": "file:///manifest/r.png",
        "reference_image.1": "file:///manifest/s.png",
        "video": "file:///manifest/v.mp4",
    }
    assert (request.condition_index, request.redraw) == ((0, -1), True)
    assert (request.start_from_video, request.control, request.maps_made_of) == (True, (), "")
    sampling = request.sampling
    assert (sampling.strength, sampling.histogram_match) == (0.25, True)
    first = sampling.first_frame
    assert (first.strength, first.negative_prompt) == (0.5, "blur")
    assert request_from_json(request_to_json(request)) == request
    assert one(good(shot_frames=12)).sampling.shots.num_frames == 12
    ends = one(video(control_start=[0.25], control_end=[0.5]), SEEDED)
    assert (ends.control_start, ends.control_end) == ((0.25,), (0.5,))


def test_seed_is_a_function_of_the_name_alone() -> None:
    # printf 'musev:seed:a' | sha256sum, the first 16 digits, halved
    assert seed_for("a") == 1770237714882513413
    assert one(good(steps=3)).seed == one(good()).seed != one(good(request_id="b")).seed


@pytest.mark.parametrize(
    ("row", "column", "phrase"),
    [
        ({"prompt": "p"}, "request_id", "row 1, column 'request_id': is missing"),
        ({"request_id": "a"}, "prompt", "no condition_image"),
        ({"request_id": "a", "prompt": "  "}, "prompt", "no condition_image"),
        (good(num_frames=-1), "num_frames", "row 1 ('a'), column 'num_frames'"),
        (good(num_frames=1, condition_image="a.png"), "num_frames", "at least 2"),
        (good(fps=math.nan), "fps", "finite"),
        (good(condition_image="../a.png"), "condition_image", "path outside"),
        (good(width=100), "width", "multiple of 16, got 100. Nearest: 96 and 112"),
        (good(height=7), "height", "Nearest: 16."),
        (good(window=4), "window", "overlap"),
        (good(overlap=12), "overlap", "overlap"),
        (good(profile="minii"), "profile", "Did you mean 'mini'"),
        (good(redraw=True), "redraw", "needs a condition_image"),
        (good(strength=0.5), "strength", "starts from none"),
        (good(condition_image=["a.png", "b.png"], num_frames=2), "num_frames", "at least 3"),
        (
            good(condition_image=["a.png", "b.png"], condition_index=[0], num_frames=9),
            "condition_index",
            "one number an image",
        ),
        (
            good(condition_image="a.png", condition_index=[-1], shot_frames=4),
            "condition_index",
            "does not go together with shots",
        ),
        (good(condition_image=["a.png", "../b.png"]), "condition_image", "path outside"),
        (good(profile="musev"), "profile", "other weights"),
        (good(img_length_ratio=0.1), "img_length_ratio", "is 0"),
        (good(img_length_ratio=90), "img_length_ratio", "8192"),
        (good(face_image="f.png", face_embedding=[0.5]), "face_embedding", "Give one of them"),
        (good(loras=["lmc"]), "loras", "neither a LoRA file"),
        (good(loras=["a.safetensors:1:NOSE"]), "loras", "presets: FACE"),
        (good(loras=["../a.safetensors"]), "loras", "path outside"),
        (good(promt="x"), "promt", "Did you mean 'prompt'"),
        (good(prompt=BadCell("damaged here")), "prompt", "damaged here"),
        ({WHOLE_ROW: BadCell("line 3 is not JSON")}, WHOLE_ROW, "row 1: line 3 is not JSON"),
    ],
)
def test_a_bad_row_is_a_failure_that_says_everything(row, column: str, phrase: str) -> None:
    failure = one(row)
    assert failure.column == column
    assert phrase in failure.message
    assert (failure.stage, failure.row) == ("manifest", 1)
    assert failure.error_class == "RequestError"


def test_bad_rows_leave_the_others_alone() -> None:
    rows = [good(), good(request_id="b", fps="fast"), {"fps": 3}, good(request_id="d")]
    requests, failures = resolve_rows(rows, MINI, BASE)
    assert [request.request_id for request in requests] == ["a", "d"]
    assert [(f.request_id, f.row, f.value) for f in failures] == [
        ("b", 2, "'fast'"),
        ("row-3", 3, ""),
    ]


def test_a_repeated_request_id_fails_naming_the_first_row() -> None:
    rows = [good(), good(request_id="b"), good(steps=3), good()]
    requests, failures = resolve_rows(rows, MINI, BASE)
    assert [request.request_id for request in requests] == ["a", "b"]
    assert [failure.row for failure in failures] == [3, 4]
    assert "of row 1" in failures[1].message


def test_long_values_are_shortened() -> None:
    failure = one(good(layout="x" * 5000))
    assert len(failure.value) == 80
    assert len(failure.message) < 300


def test_a_row_may_name_a_profile_that_shares_the_weights() -> None:
    other = replace_setting(
        dataclasses.replace(MINI, name="slow", width=64), "sampling.num_steps", 9
    )

    def find(name: str) -> Profile:
        if name != "slow":
            raise ConfigError(f"no profile {name!r}")
        return other

    request = one(good(profile="slow", overlap=2), find_profile=find)
    assert (request.profile, request.width, request.sampling.num_steps) == ("slow", 64, 9)
    assert request.sampling.windows.overlap == 2
    mini = one(good(profile="mini"), find_profile=find)
    assert mini.sampling == dataclasses.replace(mini, sampling=MINI.sampling).sampling


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weights", {"weights": WeightsConfig(random_seed=5)}),
        ("precision", {"precision": "bfloat16"}),
        ("encoder", {"encoder": dataclasses.replace(MINI.encoder, crf=30)}),
    ],
)
def test_a_profile_that_needs_another_worker_is_refused(part: str, change: dict[str, Any]) -> None:
    other = dataclasses.replace(MINI, name="other", **change)
    failure = one(good(profile="other"), find_profile=lambda _: other)
    assert failure.column == "profile"
    assert f"other {part}" in failure.message


SIZES = (
    json.loads((GOLDENS / "pipeline/functions/size_rounding.json").read_text())
    if (have_goldens())
    else [{}]
)


@pytest.mark.parity
@pytest.mark.parametrize("case", SIZES, ids=lambda case: "x".join(map(str, case.values())))
def test_sizes_equal_the_originals(case: dict[str, Any]) -> None:
    require_goldens()
    keys = ("width", "height", "img_length_ratio")
    outcome = one(good(**{key: case[key] for key in keys}), get_profile("upstream"))
    if min(case["out_width"], case["out_height"]) == 0:  # the original goes on with an empty clip
        assert (outcome.column, "is 0" in outcome.message) == ("img_length_ratio", True)
    else:
        assert (outcome.width, outcome.height) == (case["out_width"], case["out_height"])


def test_size_from_the_condition_image(tmp_path: Path) -> None:
    Image.new("RGB", (150, 90)).save(tmp_path / "c.png")
    rows = [
        good(request_id="both", condition_image="c.png", img_length_ratio=1.0),
        good(request_id="one", condition_image="c.png", img_length_ratio=0.5, width=64),
        good(request_id="given", condition_image="c.png"),
        good(request_id="no image", img_length_ratio=0.5),
    ]
    requests, failures = resolve_rows(rows, MINI, f"file://{tmp_path}")
    assert failures == []
    assert [(r.width, r.height) for r in requests] == [(144, 80), (32, 32), (128, 128), (64, 64)]


def test_images_whose_size_cannot_be_read_fail_alone(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    names = ("empty.png", "missing.png")
    rows = [good(request_id=n, condition_image=n, img_length_ratio=1.0) for n in names]
    requests, failures = resolve_rows([*rows, good()], MINI, f"file://{tmp_path}")
    assert [request.request_id for request in requests] == ["a"]
    assert [(f.column, f.error_class) for f in failures] == [("condition_image", "MediaError")] * 2


def test_an_images_header_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "c.png"
    Image.effect_noise((300, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert read_image_size(f"file://{path}") == (300, 200)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.integers() | st.text(max_size=2), max_size=2),
    st.sampled_from(["a.png", "musev", "mini", 1, 64, 1.0, {"a": math.nan}, BadCell("x")]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from([*MANIFEST_COLUMNS, "other"]), VALUES, max_size=8),
        max_size=4,
    )
)
def test_no_row_ever_raises_and_none_is_lost(rows: list[dict[str, Any]]) -> None:
    requests, failures = resolve_rows(rows, MINI, BASE, image_size=lambda _: (64, 64))
    assert len(requests) + len(failures) == len(rows)
    for request in requests:
        assert request_from_json(request_to_json(request)) == request
    for failure in failures:
        assert failure.message.startswith(f"row {failure.row}")
        assert failure.sample_id
