"""The original's command lines from end to end: translated, told, rendered by tiny networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.from_musev import app, main, measure_video
from musev.media import encode_png, probe_video, write_segment
from musev.synthetic.portraits import draw_portrait
from tests.job_flags import flags_of
from tests.job_process import run_job

TINY = ["weights.random_seed=1", "precision=float32", "sampling.num_steps=2"]
TINY += ["sampling.first_frame.num_steps=2"]
# Upstream README, musev_referencenet, text2video.
README = (
    "python scripts/inference/text2video.py --sd_model_name majicmixRealv6Fp16 "
    "--unet_model_name musev_referencenet --referencenet_model_name musev_referencenet "
    "--ip_adapter_model_name musev_referencenet -test_data_path ./configs/tasks/example.yaml "
    "--output_dir ./output --n_batch 1 --target_datas yongen "
    "--vision_clip_extractor_class_name ImageClipVisionFeatureExtractor "
    "--vision_clip_model_path ./checkpoints/IP-Adapter/models/image_encoder "
    "--time_size 12 --fps 12"
)
TASKS = """
- &image_task
  condition_images: ./data/images/yongen.png
  eye_blinks_factor: 1.8
  height: 96
  img_length_ratio: 0.957
  ipadapter_image: ${.condition_images}
  name: yongen
  prompt: (masterpiece, best quality:1),(1boy, solo:1),(eye blinks:{eye_blinks_factor})
  refer_image: ${.condition_images}
  video_path: null
  width: 96
- name: gone
  prompt: a picture that is not there
  condition_images: ./data/images/Mona_Lisa..jpg
  height: 64
  width: 64
- name: unreadable
  prompt: "{hair}"
"""


@pytest.fixture
def project(folder: Path) -> Path:
    """A folder as the original's, with one picture and a task file."""
    (folder / "configs" / "tasks").mkdir(parents=True)
    (folder / "configs" / "tasks" / "example.yaml").write_text(TASKS)
    (folder / "data" / "images").mkdir(parents=True)
    picture = encode_png(draw_portrait(0, width=96, height=96))
    (folder / "data" / "images" / "yongen.png").write_bytes(picture)
    return folder


def arguments(project: Path, line: str, *more: str) -> list[str]:
    tiny = [word for change in TINY for word in ("--set", change)]
    return ["--project", str(project), *tiny, *more, "--", *line.split()]


def results(folder: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    return {row["request_id"]: row for row in rows}


def test_the_set_of_flags_changes_only_on_purpose() -> None:
    flags = {flag for flag in flags_of(app) if flag.startswith("-")}
    assert flags == {
        "--output",
        "--project",
        "--profile",
        "--set",
        "--workers",
        "--dry-run",
        "--retry-failed",
        "--require-licence",
    }


def test_a_dry_run_tells_the_command_and_touches_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(project.rglob("*"))
    assert main(arguments(project, README, "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "== majicmixRealv6Fp16" in told
    assert f"--manifest {project}/output/majicmixRealv6Fp16/manifest.parquet" in told
    assert "--profile upstream --set fps=12" in told
    assert "to render      1 clips, 13 frames" in told
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("python app.py", "must name text2video.py"),
        (README.replace("yongen", "yongan"), "Did you mean 'yongen'"),
        (README.replace("majicmixRealv6Fp16", "majicmix"), "Did you mean 'majicmixRealv6Fp16'"),
        (README.replace("example", "exmaple"), "cannot read the task file"),
        (README + " --facein_model_name facein", "never released"),
        (README.replace("yongen", "unreadable"), "no task can be rendered"),
    ],
)
def test_a_wrong_command_is_status_2(
    project: Path, capsys: pytest.CaptureFixture[str], line: str, phrase: str
) -> None:
    assert main(arguments(project, line, "--dry-run")) == 2
    assert phrase in capsys.readouterr().err


def test_the_weights_of_the_command_are_used_without_others(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = README.replace("majicmixRealv6Fp16", "all")
    status = main(["--project", str(project), "--dry-run", "--", *line.split()])
    told = capsys.readouterr()
    assert status == 1, "there are no such weights here"
    for model in ("majicmixRealv6Fp16", "fantasticmix_v10"):
        assert f"weights.t2i={project}/checkpoints/t2i/sd1.5/{model}" in told.out
        assert f"checkpoints/t2i/sd1.5/{model}/tokenizer is missing" in told.err


@pytest.mark.timeout(300)
def test_the_readmes_command_renders(project: Path) -> None:
    """With every task of the file: one renders, one fails alone, one cannot be read."""
    line = README.replace("--target_datas yongen", "--target_datas all")
    line += " --save_images --save_filetype gif"
    done = run_job("jobs.from_musev", *arguments(project, line), timeout_s=280)
    assert done.returncode == 3, done.stderr
    assert "left out: row 3, column 'prompt'" in done.stderr
    rows = results(project / "output" / "majicmixRealv6Fp16")
    assert {name: row["status"] for name, row in rows.items()} == {
        "yongen": "committed",
        "gone": "failed",
    }
    row = rows["yongen"]
    facts = probe_video(Path(row["video_uri"].removeprefix("file://")))
    assert (facts.width, facts.height, facts.num_frames) == (64, 64, 13)
    assert facts.fps == 12
    assert (row["profile"], row["layout"], row["scheduler"]) == ("upstream", "upstream", "euler")
    assert set(dict(row["media_digests"])) == {
        "condition_image",
        "reference_image",
        "ip_adapter_image",
    }
    name = json.loads(row["extra"])["musev_name"]
    assert name.startswith("m=majicmixRealv6Fp16_rm=musev_referencenet_case=yongen_w=64_h=64_t=12")
    assert f"_s={row['seed']}_" in name
    assert "MediaError" in rows["gone"]["error_class"]
    exports = project / "output" / "majicmixRealv6Fp16" / "exports"
    stem = name.removesuffix(".mp4")
    assert sorted(path.name for path in exports.iterdir()) == [stem, f"{stem}.gif"]
    assert len(list((exports / stem).glob("*.png"))) == 13
    with Image.open(exports / f"{stem}.gif") as animation:
        assert animation.n_frames == 13
    assert "exports        1 videos as gif, images" in done.stdout


VIDEO_TASKS = """
- name: follows
  condition_images: ./data/images/yongen.png
  prompt: a person
  video_path: ./data/poses.mp4
  video_is_middle: true
  height: 64
  width: 64
- name: outside
  condition_images: ./data/images/yongen.png
  prompt: a person
  video_path: ./data/poses.mp4
  video_has_condition: false
  height: 64
  width: 64
- name: filmed
  prompt: a person
  video_path: ./data/poses.mp4
  height: 64
  width: 64
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_video2video_command_renders(project: Path) -> None:
    """Two base models, one after the other; ready maps, maps that are made, shots of 4 frames."""
    (project / "tasks.yaml").write_text(VIDEO_TASKS)
    grey = (np.full((64, 64, 3), 25 * number, np.uint8) for number in range(9))
    write_segment(project / "data" / "poses.mp4", grey, fps=30)
    line = (
        "python scripts/inference/video2video.py --sd_model_name all -test_data_path ./tasks.yaml "
        "--output_dir ./output --controlnet_name dwpose_body_hand --time_size 4 --n_batch 3 "
        "--fps 12 --which2video video --video_strength 0.5"
    )
    more = ["--set", "sampling.windows.num_frames=4", "--set", "sampling.windows.overlap=1"]
    done = run_job("jobs.from_musev", *arguments(project, line, *more), timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    lengths = {"follows": 9, "outside": 10, "filmed": 9}
    for model in ("majicmixRealv6Fp16", "fantasticmix_v10"):
        rows = results(project / "output" / model)
        assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(
            lengths, "committed"
        )
        for name, row in rows.items():
            facts = probe_video(Path(row["video_uri"].removeprefix("file://")))
            assert (facts.num_frames, facts.fps) == (lengths[name], 12), name
            assert json.loads(row["extra"])["musev_name"].startswith("v2v_m=" + model)


def test_a_driving_video_is_measured(folder: Path) -> None:
    frames = (np.full((64, 96, 3), 40 * number, np.uint8) for number in range(5))
    write_segment(folder / "v.mp4", frames, fps=8)
    found = measure_video(f"file://{folder}/v.mp4")
    assert (found.num_frames, found.width, found.height, found.fps) == (5, 96, 64, 8)
    import fsspec

    fsspec.filesystem("memory").put_file(str(folder / "v.mp4"), "/driving/v.mp4")
    assert measure_video("memory://driving/v.mp4") == found
    assert measure_video("file:///nowhere.mp4") is None
    assert measure_video("nodriver://x") is None
