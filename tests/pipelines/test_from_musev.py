from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs._cli import load_settings
from musev.config import Profile
from musev.errors import ConfigError, ManifestError
from musev.media import VideoInfo
from musev.negative_prompts import NEGATIVE_PROMPTS
from musev.registry import get_profile
from musev.settings import replace_settings
from pipelines.from_musev import _SETTINGS, Translation, original_name, translate
from pipelines.musev_flags import FLAGS, read_command
from pipelines.resolve import resolve_rows
from pipelines.rows import BadCell
from tests.goldens import GOLDENS, require_goldens

CLI = GOLDENS / "pipeline" / "functions" / "cli.json"
TASKS = """
- name: ada
  condition_images: ./data/ada.png
  refer_image: ./data/ada-2.png
  prompt: a woman
  sex: woman
  height: 64
  width: 128
  motion_speed: 4.0
- name: sea
  prompt: "waves|storm"
  video_path: ./data/sea.mp4
  video_negative_prompt: V1
- name: moved
  prompt: p
  condition_images: [a.png, b.png]
  redraw_condition_image: true
  video_path: s3://bucket/v.mp4
  video_is_middle: true
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tasks.yaml").write_text(TASKS)
    return tmp_path


def run(project: Path, line: str, profile: Profile | None = None, **more: Any) -> Translation:
    script, _, flags = line.partition(" ")
    command = read_command(
        [f"{script}.py -test_data_path tasks.yaml --sd_model_name fantasticmix_v10 {flags}"]
    )
    profile = profile or get_profile("upstream")
    return translate(command, profile, project=str(project), **more)


def rows(project: Path, line: str, **more: Any) -> dict[str, dict[str, Any]]:
    (only,) = run(project, line, **more).runs
    return {row["request_id"]: row for row in only.rows}


def settings(project: Path, line: str, **more: Any) -> dict[str, str]:
    (only,) = run(project, line, **more).runs
    return {k: v for k, v in only.settings.items() if not k.startswith("weights.")}


def value_at(profile: Profile, dotted: str) -> Any:
    value: Any = profile
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


# Defaults


@pytest.mark.parity
@pytest.mark.parametrize("dest", _SETTINGS)
def test_profile_upstream_has_the_originals_default(dest: str) -> None:
    require_goldens()
    recorded = {
        flag["dest"]: flag["default"]
        for script in json.loads(CLI.read_text()).values()
        for flag in script
    }
    assert value_at(get_profile("upstream"), _SETTINGS[dest]) == recorded[dest]


def test_a_command_without_flags_changes_nothing_of_profile_upstream(project: Path) -> None:
    assert settings(project, "text2video") == {}


@pytest.mark.parametrize("script", ["text2video", "video2video"])
def test_every_flags_default_written_out_changes_nothing(project: Path, script: str) -> None:
    """Settings that are spelled and read back are those of the profile."""
    words = [
        f"{flag.name} {flag.default}"
        for flag in FLAGS.values()
        if flag.home in ("setting", "column")
        and flag.kind not in ("on", "off")
        and flag.default is not None
        and flag.only in (None, script)
        and flag.dest not in ("negative_prompt", "video_negative_prompt", "motion_speed")
    ]
    found = settings(project, f"{script} {' '.join(words)}")
    assert len(found) > 10
    found.pop("sampling.motion_speed", None)  # video2video reads the sample rate instead, and
    found.pop("sampling.first_frame.becomes_reference", None)  # shows its first frame to all
    profile = get_profile("upstream")
    assert replace_settings(profile, found) == profile


# Settings


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--video_guidance_scale 5 --video_guidance_scale_end 2", {
            "sampling.guidance.scale": "5", "sampling.guidance.scale_end": "2"}),
        ("--guidance_scale 6 --num_inference_steps 20", {
            "sampling.first_frame.guidance.scale": "6", "sampling.first_frame.num_steps": "20"}),
        ("--need_img_based_video_noise", {"sampling.img_weight": "0"}),
        ("--noise_type random", {"sampling.noise": "upstream_random",
                                 }),
        ("--context_schedule uniform --context_stride 2", {
            "sampling.windows.layout": "upstream_uniform", "sampling.windows.stride": "2"}),
        ("--n_vision_condition 0", {"sampling.first_frame.origin": "noise"}),
        ("--need_hist_match", {"sampling.histogram_match": "true"}),
        ("--redraw_condition_image_with_referencenet", {
            "sampling.first_frame.with_reference": "false"}),
        ("--negative_prompt V1", {"sampling.first_frame.negative_prompt": NEGATIVE_PROMPTS["V1"]}),
        ("--fps 12", {"fps": "12"}),
        ("--fixed_refer_image", {}),  # says something of later shots only
        ("--n_batch 3 --time_size 24 --fixed_refer_image --fix_condition_images", {
            "sampling.shots.num_frames": "24", "sampling.shots.carried_frames": "1",
            "sampling.shots.fixed_reference": "false", "sampling.shots.fixed_condition": "true"}),
    ],
)  # fmt: skip
def test_flags_as_settings(project: Path, flags: str, expected: dict[str, str]) -> None:
    found = settings(project, f"text2video {flags}")
    assert found == expected
    load_settings("upstream", [f"{key}={value}" for key, value in found.items()])


def test_zero_snr_is_a_solver(project: Path) -> None:
    found = settings(project, "video2video --enable_zero_snr")
    assert found["sampling.solver"] == "ddim_zero_snr"


def test_smoothing_between_shots_is_video2videos(project: Path) -> None:
    flags = "--n_batch 2 --record_mid_video_noises --video_overlap 3"
    found = settings(project, f"video2video {flags}")
    assert found["sampling.shots.smoothed_frames"] == "3"
    assert found["sampling.shots.smooth_estimates"] == "true"
    assert found["sampling.shots.smooth_latents"] == "false"
    assert "sampling.shots.smoothed_frames" not in settings(project, f"text2video {flags}")


def test_with_our_profile_noise_windows_and_shots_are_ours(project: Path) -> None:
    ours = get_profile("musev")
    line = "text2video --noise_type random --context_schedule uniform_v2 --n_batch 3"
    translation = run(project, line, ours)
    found = settings(project, line, profile=ours)
    assert found == {"sampling.w_ind_noise": "1"}
    assert any("become one video" in note for note in translation.notes)
    assert translation.runs[0].rows[0]["num_frames"] == 37


# Rows


def test_a_text2video_row(project: Path) -> None:
    line = "text2video --target_datas ada --referencenet_model_name musev_referencenet --seed 7"
    (row,) = rows(project, line).values()
    assert row == {
        "request_id": "ada",
        "prompt": "a woman",
        "condition_image": f"file://{project}/data/ada.png",
        "reference_image": f"file://{project}/data/ada-2.png",
        "height": 64,
        "width": 128,
        "img_length_ratio": 1.0,
        "motion_speed": 4.0,
        "num_frames": 13,
        "seed": 7,
        "extra": '{"sex":"woman"}',
    }


def test_pictures_come_from_the_task_the_command_line_or_the_condition(project: Path) -> None:
    nets = (
        "--referencenet_model_name musev_referencenet --ip_adapter_model_name musev_referencenet "
        "--vision_clip_extractor_class_name ImageClipVisionFeatureExtractor"
    )
    found = rows(project, f"text2video --target_datas ada {nets}")["ada"]
    assert found["ip_adapter_image"] == f"file://{project}/data/ada.png"
    found = rows(project, f"text2video --target_datas ada {nets} --ipadapter_image_path /i.png")
    assert found["ada"]["ip_adapter_image"] == "file:///i.png"
    found = rows(project, "text2video --target_datas ada")["ada"]
    assert "reference_image" not in found, "there is no ReferenceNet"


def test_a_text2video_task_has_no_driving_video(project: Path) -> None:
    found = rows(project, "text2video --target_datas sea")
    assert set(found) == {"sea-1", "sea-2"}
    assert found["sea-1"]["negative_prompt"] == NEGATIVE_PROMPTS["V1"]
    assert "video" not in found["sea-1"]
    assert found["sea-1"]["num_frames"] == 12, "the first frame is drawn"


def test_flags_that_leave_the_image_out(project: Path) -> None:
    for flags in ("--use_condition_image", "--n_vision_condition 0"):
        row = rows(project, f"text2video --target_datas ada {flags}")["ada"]
        assert "condition_image" not in row
        assert row["num_frames"] == 12


def test_negative_prompts(project: Path) -> None:
    found = rows(project, "text2video --target_datas ada --video_negative_prompt V5")["ada"]
    assert found["negative_prompt"] == NEGATIVE_PROMPTS["V5"]
    found = rows(project, "text2video --target_datas ada --add_static_video_prompt")["ada"]
    assert found["negative_prompt"] == f"static video, {NEGATIVE_PROMPTS['V5']}"
    line = "text2video --target_datas ada --negprompt_cfg_path None --video_negative_prompt V2"
    assert rows(project, line)["ada"]["negative_prompt"] == "V2", "taken literally"
    with pytest.raises(ConfigError, match="no 'V9'"):
        rows(project, "text2video --video_negative_prompt V9")


def test_the_default_negative_prompt_needs_its_embeddings(project: Path) -> None:
    line = "text2video --target_datas ada"
    assert any("weights.embeddings.badhandv4" in note for note in run(project, line).notes)
    held = replace_settings(
        get_profile("upstream"),
        {
            f"weights.embeddings.{token}": "e.pt"
            for token in ("badhandv4", "ng_deepnegative_v1_75t")
        },
    )
    assert rows(project, line, profile=held)["ada"]["negative_prompt"] == NEGATIVE_PROMPTS["V2"]
    assert not any("badhandv4" in note for note in run(project, line, held).notes)


def test_repeats_have_names_and_so_seeds_of_their_own(project: Path) -> None:
    found = rows(project, "text2video --target_datas ada --n_repeat 3")
    assert list(found) == ["ada", "ada-repeat-2", "ada-repeat-3"]
    assert list(rows(project, "text2video --target_datas ada --n_repeat 3 --seed 1")) == ["ada"]


def test_a_video2video_row(project: Path) -> None:
    line = (
        "video2video --target_datas sea --controlnet_name dwpose,depth --sample_rate 2 "
        "--controlnet_conditioning_scale 0.5 --time_size 24"
    )
    row = rows(project, line)["sea-1"]
    assert row["video"] == f"file://{project}/data/sea.mp4"
    assert (row["control"], row["control_scale"]) == (["dwpose", "depth"], [0.5, 0.5])
    assert row["video_is_control"] is False
    assert "video_has_condition" not in row, "there is no condition image"
    for column, value in (("start_from_video", True), ("sample_rate", 2)):
        assert row[column] == value
    assert row["num_frames"] == 24
    assert settings(project, line)["sampling.motion_speed"] == "2"


FILMED = VideoInfo(width=320, height=192, num_frames=15, fps=30.0, duration_s=0.5, codec="h264")


def test_a_driving_video_ends_the_row_sooner_and_gives_its_size(project: Path) -> None:
    line = "video2video --target_datas sea --sample_rate 2 --time_size 24"
    row = rows(project, line, video_facts=lambda uri: FILMED)["sea-1"]
    assert (row["num_frames"], row["width"], row["height"]) == (8, 320, 192)


def test_with_our_profile_a_video_is_read_by_time(project: Path) -> None:
    line, ours = "video2video --target_datas sea --time_size 24 --fps 12", get_profile("musev")
    row = rows(project, line, profile=ours, video_facts=lambda uri: FILMED)["sea-1"]
    assert row["num_frames"] == 6, "half a second"
    assert "sample_rate" not in row
    line += " --sample_rate 3"
    row = rows(project, line, profile=ours, video_facts=lambda uri: FILMED)["sea-1"]
    assert row["num_frames"] == 5


def test_a_first_frame_of_video2video_is_the_reference_from_then_on(project: Path) -> None:
    key = "sampling.first_frame.becomes_reference"
    assert settings(project, "video2video")[key] == "true"
    assert key not in settings(project, "video2video", profile=get_profile("musev"))


def test_maps_are_nothing_to_start_from(project: Path) -> None:
    row = rows(project, "video2video --target_datas moved --which2video video")["moved"]
    assert row["video_is_control"] is True
    assert "start_from_video" not in row


def test_a_video_without_a_condition_image_has_it_nowhere(project: Path) -> None:
    row = rows(project, "video2video --target_datas sea --video_has_condition")["sea-1"]
    assert "video_has_condition" not in row
    assert row["num_frames"] == 12


def test_a_condition_outside_the_video_comes_on_top(project: Path) -> None:
    line = "video2video --target_datas moved --which2video video_middle --video_has_condition"
    row = rows(project, line)["moved"]
    assert row["num_frames"] == 13
    assert row["video_is_control"] is True, "as the task says"
    assert "start_from_video" not in row


def test_a_task_without_a_video_fails_alone(project: Path) -> None:
    row = rows(project, "video2video --target_datas ada")["ada"]
    assert isinstance(row["video"], BadCell)


def test_a_task_that_is_not_for_the_model_is_skipped(project: Path) -> None:
    (project / "t2i.py").write_text(
        "MODEL_CFG = {'men': {'sd': '/m', 'sex': 'man'}, 'all': {'sd': '/a'}}"
    )
    command = read_command(["text2video.py -test_data_path tasks.yaml --sd_model_cfg_path t2i.py "])
    men, everyone = translate(command, get_profile("upstream"), project=str(project)).runs
    assert (men.model, everyone.model) == ("men", "all")
    assert [row["request_id"] for row in men.rows] == ["sea-1", "sea-2", "moved"]
    assert "sex 'woman', and the model is for 'man'" in men.skipped[0]
    assert (len(everyone.rows), everyone.skipped) == (4, ())


def test_csv_tasks_work(project: Path) -> None:
    """The original tests a file's stem against 'csv', so these never did (ALGORITHM.md 17)."""
    (project / "tasks.csv").write_text(
        "name,prompt,condition_images,height,width,hair\nada,{hair},data/a.png,64,128,\nb,sea,,,,\n"
    )
    command = read_command(["text2video.py -test_data_path tasks.csv --target_datas b,ada"])
    (first, _) = translate(command, get_profile("upstream"), project=str(project)).runs
    ada, sea = first.rows
    assert isinstance(ada["prompt"], BadCell), "an empty cell is no attribute"
    assert (ada["height"], ada["width"]) == (64, 128)
    assert ada["condition_image"] == f"file://{project}/data/a.png"
    assert sea["prompt"] == "sea"


@pytest.mark.parametrize(
    ("line", "phrase", "kind"),
    [
        ("text2video --target_datas adda", "Did you mean 'ada'", ConfigError),
        ("text2video --target_datas ,", "names nothing", ConfigError),
    ],
)
def test_unknown_tasks(project: Path, line: str, phrase: str, kind: type) -> None:
    with pytest.raises(kind, match=phrase):
        run(project, line)


def test_a_missing_task_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot read the task file"):
        run(tmp_path, "text2video")


@pytest.mark.parity
def test_the_originals_example_gives_a_row_for_every_task(tmp_path: Path) -> None:
    require_goldens()
    recorded = json.loads((GOLDENS / "pipeline/functions/tasks_example.json").read_text())["tasks"]
    tasks = [
        {**task, "prompt": task["origin_prompt"], "origin_prompt": None, "prompt_hash": None}
        for task in recorded
    ]
    tasks = [{key: value for key, value in task.items() if value is not None} for task in tasks]
    (tmp_path / "tasks.yaml").write_text(json.dumps(tasks))  # JSON is YAML
    line = "text2video --referencenet_model_name musev_referencenet"
    found = rows(tmp_path, line)
    requests, failures = resolve_rows(found.values(), get_profile("upstream"), "file:///x")
    assert failures == []
    assert [request.request_id for request in requests] == [task["name"] for task in recorded]
    assert [request.prompt for request in requests] == [task["prompt"] for task in recorded]
    command = read_command(["text2video.py -test_data_path t --sd_model_name x"])
    name = original_name(command, "m", requests[0])
    assert f"_case={recorded[0]['name']}_" in name
    assert f"_p={recorded[0]['prompt_hash']}_" in name
    assert f"_c-i={recorded[0]['name'][:5]}_" in name
