"""The main job from its command line: the plan without Ray, then a real run with bad rows in it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs._console import Teller
from jobs.text_to_video import _with_poses, app, main, prepare
from musev.media import encode_png, probe_video, write_segment
from musev.synthetic.portraits import draw_portrait
from pipelines.ledger import Ledger
from pipelines.manifest import write_manifest
from pipelines.rows import TEXT_TO_POSE, RowFailure
from tests.job_flags import flags_of
from tests.job_process import run_job

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--set", "width=64", "--set", "height=64", "--set", "sampling.num_steps=2"]
SMALL += ["--set", "sampling.first_frame.origin=drawn"]  # of short clips too: its picture counts


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mvj", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def portraits(folder: Path) -> list[str]:
    names = []
    for seed in range(2):
        path = folder / f"person-{seed}.png"
        path.write_bytes(encode_png(draw_portrait(seed, width=96, height=96)))
        names.append(path.name)
    return names


def job(folder: Path, manifest: str, *more: str) -> list[str]:
    return ["--manifest", str(folder / manifest), "--output", str(folder / "out"), *SMALL, *more]


def test_the_set_of_flags_changes_only_on_purpose() -> None:
    assert flags_of(app) == {
        "--manifest",
        "--output",
        "--profile",
        "--set",
        "--workers",
        "--dry-run",
        "--retry-failed",
        "--require-licence",
        "--text-to-pose",
    }


def test_a_licence_that_is_required_is_checked_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"request_id": "a", "prompt": "a coat", "loras": [f"{tmp_path}/style.safetensors"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "style.safetensors").touch()
    wanted = ("--dry-run", "--require-licence", "commercial")
    assert main(job(tmp_path, "rows.jsonl", *wanted)) == 2
    told = capsys.readouterr().err
    assert "style.safetensors (unknown)" in told
    assert "random" not in told  # of the networks themselves one is known
    assert not (tmp_path / "out").exists()
    assert main(job(tmp_path, "rows.jsonl", "--dry-run", "--require-licence", "any")) == 2
    assert "must be commercial" in capsys.readouterr().err
    (tmp_path / "free").mkdir()
    (tmp_path / "free" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tmp_path / "free" / "style.safetensors").touch()
    row["loras"] = ["free/style.safetensors"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    main(job(tmp_path, "rows.jsonl", *wanted))
    assert "no licence" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--manifest", "nowhere.parquet", "--output", "out"],
        ["--manifest", "nowhere.parquet", "--output", "out", "--nonsense"],
        ["--manifest", "nowhere.parquet", "--output", "out", "--profile", "nobody"],
        ["--manifest", "nowhere.parquet", "--output", "out", "--set", "colour=red"],
    ],
)
def test_a_wrong_command_or_manifest_is_status_2(arguments: list[str]) -> None:
    assert main(arguments) == 2


def test_an_empty_manifest_is_status_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty.csv").write_text("request_id,prompt\n")
    assert main(job(folder, "empty.csv")) == 2
    assert "nothing to render" in capsys.readouterr().err


def test_a_dry_run_tells_the_plan_and_touches_nothing(
    folder: Path, portraits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"request_id": "good", "prompt": "a man", "num_frames": 20},
        {"request_id": "gone", "condition_image": "gone.png"},
        {"request_id": "short", "prompt": "a man", "num_frames": -3},
    ]
    write_manifest(rows[:2], str(folder / "good.csv"))
    text = (folder / "good.csv").read_text() + "short,a man,,-3\n"
    (folder / "dry.csv").write_text(text.replace("\r\n", "\n"))
    before = sorted(folder.rglob("*"))
    status = main(job(folder, "dry.csv", "--dry-run"))
    told = capsys.readouterr().out
    assert status == 3
    assert "rows           3" in told
    assert "to render      1 clips, 20 frames, 2 windows, 4 network calls" in told
    assert "bad row gone: MediaError in load_inputs: no file at" in told
    assert "bad row short: RequestError in manifest" in told
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_starts_neither_ray_nor_torch(folder: Path) -> None:
    write_manifest([{"request_id": "one", "prompt": "a man"}], str(folder / "one.parquet"))
    code = (
        "import sys\n"
        "from jobs.text_to_video import main\n"
        "status = main(sys.argv[1:])\n"
        "sys.exit(status or bool({'ray', 'torch'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, *job(folder, "one.parquet", "--dry-run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


GOOD_ROWS = ("image", "prompt", "all-images", "long", "twin", "follows")
LENGTHS = {"long": 18, "follows": 5}
BAD_ROWS = {
    "missing": "MediaError",
    "truncated": "MediaError",
    "zero-bytes": "MediaError",
    "text-file": "MediaError",
    "folder": "MediaError",
    "cut-video": "MediaError",
    "short-video": "RequestError",
    "no-such-control": "RequestError",
    "bomb": "MediaError",
    "negative": "RequestError",
    "outside": "RequestError",
    "odd-size": "RequestError",
    "huge-size": "RequestError",
    "no-subject": "RequestError",
    "no-such-film": "MediaError",
    "other-weights": "RequestError",
    "no-driver": "RequestError",
    "unreadable-column": "RequestError",
}


def write_bad_pictures(folder: Path) -> None:
    whole = (folder / "person-0.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.png").touch()
    (folder / "text.png").write_text("a page that says 404")
    (folder / "folder.png").mkdir()
    Image.new("1", (40_000, 40_000)).save(folder / "bomb.png")


def write_control_videos(folder: Path) -> None:
    """Five frames at the profile's rate, and the same cut short."""
    frames = (np.full((64, 64, 3), 40 * number, np.uint8) for number in range(5))
    write_segment(folder / "poses.mp4", frames, fps=8)
    whole = (folder / "poses.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])


def write_mixed_manifest(folder: Path) -> Path:
    """Good and bad rows in one Parquet file whose last row group has a damaged column."""
    write_bad_pictures(folder)
    write_control_videos(folder)
    poses = {"video": "poses.mp4", "video_is_control": True}
    face, other = "person-0.png", "person-1.png"
    rows: list[dict[str, Any]] = [
        {"request_id": "image", "condition_image": face, "num_frames": 4},
        {"request_id": "prompt", "prompt": "a woman smiles", "num_frames": 4},
        {
            "request_id": "all-images",
            "condition_image": face,
            "reference_image": other,
            "ip_adapter_image": other,
            "num_frames": 4,
        },
        {"request_id": "long", "condition_image": other, "num_frames": 18},
        {"request_id": "twin", "condition_image": face, "num_frames": 4, "seed": 5},
        {"request_id": "follows", "condition_image": face, **poses},
        {"request_id": "cut-video", "prompt": "a man", **poses, "video": "cut.mp4"},
        {"request_id": "short-video", "prompt": "a man", **poses, "num_frames": 6},
        {"request_id": "no-such-control", "prompt": "a man", **poses, "control": ["depth"]},
        {"request_id": "missing", "condition_image": "missing.png"},
        {"request_id": "truncated", "condition_image": "truncated.png"},
        {"request_id": "zero-bytes", "reference_image": "zero.png", "prompt": "a man"},
        {"request_id": "text-file", "condition_image": "text.png"},
        {"request_id": "folder", "condition_image": "folder.png"},
        {"request_id": "bomb", "condition_image": "bomb.png"},
        {"request_id": "negative", "prompt": "a man", "num_frames": -5},
        {"request_id": "outside", "condition_image": "../../etc/passwd"},
        {"request_id": "odd-size", "prompt": "a man", "width": 70},
        {"request_id": "huge-size", "prompt": "a man", "width": 1_000_000},
        {"request_id": "no-subject"},
        {"request_id": "no-such-film", "prompt": "a man", "video": "dance.mp4"},
        {"request_id": "other-weights", "prompt": "a man", "profile": "musev"},
        {"request_id": "no-driver", "condition_image": "nodriver://bucket/face.png"},
        {"request_id": "unreadable-column", "prompt": "nobody will read this"},
    ]
    rows[0]["seed"] = 5
    columns = sorted({name for row in rows for name in row})
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    path = folder / "mixed.parquet"
    pq.write_table(table, path, row_group_size=len(rows) - 1)
    data = path.read_bytes()
    group = pq.read_metadata(path).row_group(1)
    chunk = next(
        column
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema == "prompt"
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    size = chunk.total_compressed_size
    path.write_bytes(data[:start] + b"\xff" * size + data[start + size :])
    return path


def rendered(*command: str) -> subprocess.CompletedProcess[str]:
    return run_job("jobs.text_to_video", *command, timeout_s=400)


@pytest.fixture(scope="module")
def mixed_run(folder: Path, portraits: list[str]) -> subprocess.CompletedProcess[str]:
    write_mixed_manifest(folder)
    return rendered(*job(folder, "mixed.parquet", "--workers", "2"))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(folder / "out" / "results.parquet")
    return {row["request_id"]: row for row in table.to_pylist()}


@pytest.mark.timeout(450)
def test_every_bad_row_fails_alone_and_every_good_row_becomes_a_video(
    folder: Path, mixed_run: subprocess.CompletedProcess[str]
) -> None:
    assert mixed_run.returncode == 3, mixed_run.stderr
    rows = results(folder)
    assert set(rows) == {*GOOD_ROWS, *BAD_ROWS}
    assert {name for name, row in rows.items() if row["status"] == "committed"} == set(GOOD_ROWS)
    for name in GOOD_ROWS:
        row = rows[name]
        video = Path(row["video_uri"].removeprefix("file://"))
        facts = probe_video(video)
        assert hashlib.sha256(video.read_bytes()).hexdigest() == row["sha256"]
        assert (facts.width, facts.height, facts.codec) == (64, 64, "h264")
        assert facts.num_frames == row["num_frames"] == LENGTHS.get(name, 4)
        assert dict(row["model_digests"])
        assert row["steps"] == 2
    assert rows["twin"]["sample_id"] == rows["image"]["sample_id"]  # one video for both


@pytest.mark.timeout(450)
@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_on_record_with_class_stage_reason_and_remedy(
    folder: Path, mixed_run: subprocess.CompletedProcess[str], name: str
) -> None:
    row = results(folder)[name]
    assert row["error_class"] == BAD_ROWS[name]
    by_media = BAD_ROWS[name] == "MediaError" or name == "short-video"
    expected_stage = "load_inputs" if by_media else "manifest"
    assert row["error_stage"] == expected_stage
    assert len([part for part in row["error_message"].split(". ") if part]) >= 2
    records = [
        json.loads(path.read_text()) for path in (folder / "out" / "failures").glob("*.json")
    ]
    assert [r["error_message"] for r in records if r["request_id"] == name] == [
        row["error_message"]
    ]
    assert row["error_message"] in mixed_run.stdout + mixed_run.stderr


@pytest.mark.timeout(450)
def test_a_run_can_be_followed_and_says_where_everything_is(
    folder: Path, mixed_run: subprocess.CompletedProcess[str]
) -> None:
    assert "to render      5 clips, 35 frames" in mixed_run.stderr
    assert "frames/s" in mixed_run.stderr
    assert "\r" not in mixed_run.stderr
    for name in ("results.parquet", "contact_sheet.png", "report.html", "run.json"):
        assert (folder / "out" / name).stat().st_size > 0
    assert f"{folder}/out/results.parquet" in mixed_run.stdout
    assert "committed      5 clips, 35 frames" in mixed_run.stdout
    assert "videos         planned 5, committed 5" in mixed_run.stdout
    assert "tasks          planned 8, done 8" in mixed_run.stdout, "one clip has two windows"


@pytest.mark.timeout(450)
def test_what_rows_share_is_computed_once_and_the_summary_counts_it(
    folder: Path, mixed_run: subprocess.CompletedProcess[str]
) -> None:
    counts = json.loads((folder / "out" / "run.json").read_text())["conditions"]
    text = counts.pop("text")
    # Of three pictures, two in files and one drawn for "prompt"; five clips, one of them long.
    once = {"computed": 3, "reused": 2}
    assert counts == {"condition frames": once, "image prompt": once, "reference": once}
    # No prompt in four rows; "prompt" has one for its first frame and one without its negative.
    assert text["computed"] + text["reused"] == 6
    assert text["computed"] in (3, 4), "a text that two workers need is computed by both"
    computed, reused = 9 + text["computed"], 6 + text["reused"]
    assert f"conditions     {computed} computed, {reused} reused" in mixed_run.stdout
    assert "Conditions" in (folder / "out" / "report.html").read_text()


@pytest.mark.timeout(450)
def test_a_second_run_renders_nothing_and_a_mended_row_is_taken_up(
    folder: Path, mixed_run: subprocess.CompletedProcess[str]
) -> None:
    commits = folder / "out" / "commits"
    before = {path.name: path.read_bytes() for path in commits.iterdir()}
    shutil.copy(folder / "person-1.png", folder / "missing.png")
    again = rendered(*job(folder, "mixed.parquet", "--set", "num_frames=3"))
    rows = results(folder)
    after = {path.name: path.read_bytes() for path in commits.iterdir()}
    assert again.returncode == 3, again.stderr
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    assert rows["missing"]["status"] == "committed"
    assert rows["missing"]["num_frames"] == 3
    assert "already there  6 rows" in again.stdout
    assert "conditions     4 computed, 0 reused" in again.stdout, "of this run"
    failures = (folder / "out" / "failures").glob("*.json")
    assert "missing" not in {json.loads(path.read_text())["request_id"] for path in failures}


@pytest.mark.timeout(450)
def test_a_short_clip_of_text_alone_is_generated_in_one_task_without_a_picture(
    tmp_path: Path,
) -> None:
    rows = [
        {"request_id": "short", "prompt": "a woman smiles", "num_frames": 13},
        {"request_id": "long", "prompt": "a woman smiles", "num_frames": 14},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    together = ["--set", "sampling.first_frame.origin=by_length"]
    done = rendered(*job(tmp_path, "rows.jsonl", *together, "--workers", "1"))
    assert done.returncode == 0, done.stderr
    assert {name: row["num_frames"] for name, row in results(tmp_path).items()} == {
        "short": 13,
        "long": 14,
    }
    assert "tasks          planned 5, done 5" in done.stdout, "one; two windows, two steps"
    counts = json.loads((tmp_path / "out" / "run.json").read_text())["conditions"]
    assert counts["condition frames"]["computed"] == 1, "only the longer one begins with a picture"


POSED = [
    {"request_id": "waves", "prompt": "a person is waving", "num_frames": 5},
    {"request_id": "quiet", "prompt": "a beach", "num_frames": 4},
]


@pytest.mark.timeout(450)
def test_prompts_are_given_poses_that_their_videos_follow(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, POSED)))
    command = job(tmp_path, "rows.jsonl", "--text-to-pose", "--workers", "1")
    dry = rendered(*command, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "poses          1 of 2 rows" in dry.stdout
    assert not (tmp_path / "out").exists()

    lost = RowFailure(
        request_id="waves",
        row=1,
        column="prompt",
        value="a person is waving",
        error_class="RequestError",
        message="no poses could be made of it",
        stage=TEXT_TO_POSE,
    )
    ledger = Ledger(str(tmp_path / "out"))
    ledger.fail(lost.sample_id, lost.to_record())  # an earlier run had no luck

    done = rendered(*command)
    assert done.returncode == 0, done.stderr
    assert not ledger.failures()
    assert "as they were   1, because the row has a prompt that names no action" in done.stderr
    found = results(tmp_path)
    assert set(dict(found["waves"]["media_digests"])) == {"keypoints"}
    assert not dict(found["quiet"]["media_digests"])
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["text_to_pose"] == "package:drawn-poses"
    (poses,) = (tmp_path / "out" / "keypoints").glob("*/*.parquet")
    before = poses.stat().st_mtime_ns
    assert "already there  2 rows" in rendered(*command).stdout
    assert poses.stat().st_mtime_ns == before


def test_a_row_whose_poses_could_not_be_made_is_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them it would be another video, and be paid for twice."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, POSED)))
    found = prepare(
        str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), "mini", (), text_to_pose=True
    )
    assert found.poses is not None
    lost = {found.poses.plan.tasks["waves"].path: "its worker died"}
    monkeypatch.setattr("jobs.text_to_video.make", lambda *_: lost)
    requests, refused = _with_poses(found, None, Teller(io.StringIO()))
    assert [request.request_id for request in requests] == ["quiet"]
    assert [(each.request_id, each.row, each.stage) for each in refused] == [
        ("waves", 1, "text_to_pose")
    ]
    assert "its worker died" in refused[0].message
    monkeypatch.setattr("jobs.text_to_video.make", lambda *_: {})
    requests, refused = _with_poses(found, None, Teller(io.StringIO()))
    assert not refused
    assert [request.keypoints is not None for request in requests] == [True, False]


def write_style(path: Path, seed: int) -> None:
    """A LoRA file that changes one layer of the shipped network."""
    import torch
    from safetensors.torch import save_file

    from musev.config import WeightsConfig
    from musev.models.bundle import load_bundle

    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    unet = load_bundle(WeightsConfig(bundle="package:mini")).unet
    rows, columns = unet.get_parameter(f"{layer}.weight").shape
    generator = torch.Generator().manual_seed(seed)
    module = "lora_unet_" + layer.replace(".", "_")
    factors = {
        f"{module}.lora_down.weight": torch.randn(4, columns, generator=generator),
        f"{module}.lora_up.weight": torch.randn(rows, 4, generator=generator),
    }
    save_file(factors, path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_with_loras_of_their_own_share_a_worker_without_a_trace(tmp_path: Path) -> None:
    """Long and short rows with two files, one or none: each as if it were rendered alone."""
    for seed in range(2):
        write_style(tmp_path / f"style-{seed}.safetensors", seed)
    common = {"prompt": "a woman smiles", "seed": 3}
    choices = {"none": [], "one": ["style-0.safetensors:0.8"], "both": ["style-1.safetensors",
               "style-0.safetensors:0.8:OUTALL"]}  # fmt: skip
    rows = [
        {"request_id": f"{name}-{frames}", "loras": loras, "num_frames": frames, **common}
        for frames in (18, 4)
        for name, loras in choices.items()
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = rendered(*job(tmp_path, "rows.jsonl", "--workers", "1"))
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert len({row["sha256"] for row in found.values()}) == len(rows)
    licences = {name: dict(row["licences"]) for name, row in found.items()}
    assert licences["both-4"].items() >= {"loras.0": "unknown", "loras.1": "unknown"}.items()
    assert licences["none-4"].keys() == dict(found["none-4"]["model_digests"]).keys() - {
        "index", "settings",
    }  # fmt: skip
    assert set(dict(found["one-18"]["media_digests"])) == {"loras.0"}

    (tmp_path / "alone.jsonl").write_text(
        "\n".join(json.dumps(row) for row in rows if row["request_id"] in ("none-18", "both-18"))
    )
    (tmp_path / "out").rename(tmp_path / "first")
    again = rendered(*job(tmp_path, "alone.jsonl", "--workers", "2"))
    assert again.returncode == 0, again.stderr
    for name, row in results(tmp_path).items():
        assert (row["sample_id"], row["sha256"]) == (
            found[name]["sample_id"],
            found[name]["sha256"],
        )
