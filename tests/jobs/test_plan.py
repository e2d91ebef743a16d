"""``musev plan`` from its command line: no Ray, no weights, bad rows beside good ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.cli import app as musev_app
from jobs.plan import app, main
from musev.config import to_plain
from musev.registry import get_profile
from pipelines.ledger import Ledger
from pipelines.manifest import read_manifest, resolve_rows, write_manifest
from tests.job_flags import flags_of

# The random networks: their sizes are small and nothing of them is read from disk.
TINY = ["--set", "weights.random_seed=1", "--set", "width=64", "--set", "height=64"]
TINY += ["--set", "sampling.num_steps=3"]
ROWS = [
    {"request_id": "short", "prompt": "a", "num_frames": 9},
    {"request_id": "long", "prompt": "b", "num_frames": 61},
    {"request_id": "bad", "prompt": "c", "num_frames": -1},
    {"request_id": "lost", "prompt": "d", "condition_image": "nowhere.png"},
]


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    target = str(tmp_path / "requests.csv")
    write_manifest(ROWS, target)
    return target


def plan(manifest: str, tmp_path: Path, *more: str) -> tuple[int, dict[str, Any]]:
    target = tmp_path / "plan.json"
    status = main([manifest, *TINY, "--json", str(target), *more])
    return status, json.loads(target.read_text()) if target.exists() else {}


def test_the_set_of_flags_changes_only_on_purpose() -> None:
    flags = flags_of(app)
    assert flags - {"manifest"} == {
        *("--output", "--profile", "--set", "--workers", "--retry-failed"),
        *("--seconds-per-task", "--like", "--explain", "--png", "--json"),
    }


def test_the_plan_lists_bad_rows_and_counts_the_good_ones(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, numbers = plan(manifest, tmp_path, "--workers", "2:4", "--seconds-per-task", "0.5")
    text = capsys.readouterr().out
    assert status == 3
    assert "bad row bad: RequestError in manifest" in text
    assert "bad row lost: MediaError in load_inputs" in text
    assert "4: 2 to render, 2 bad" in text
    assert "on 4 workers" in text
    assert [row["clip"]["tasks"] for row in numbers["rows"]] == [1, 5 + 7 + 7]
    assert numbers["num_workers"] == 4
    # 5 windows, then 7 in each of the two steps that settle, 0.5 s each; the first frame is drawn.
    assert numbers["rows"][1]["worker_s"] > 19 * 0.5
    assert numbers["rows"][1]["alone_s"] < numbers["rows"][1]["worker_s"]
    assert numbers["speed"]["source"].startswith("0.5 s for a call of")
    # Every cell is on one line, wherever the output goes.
    assert [line.split()[0] for line in text.splitlines()[:3]] == ["request", "short", "long"]


def test_without_a_speed_everything_else_is_told(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, numbers = plan(manifest, tmp_path)
    assert "time           unknown: give --seconds-per-task" in capsys.readouterr().out
    assert numbers["total_s"] is None
    assert numbers["totals"]["flops"] > 1e9


def test_an_earlier_run_tells_the_speed_and_what_is_done(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of the same rows is planned again over its own output."""
    from jobs._cli import load_settings
    from musev.weight_parts import digest_weights
    from pipelines.media_cache import MediaCache
    from pipelines.text_to_video import Graph

    changes = [TINY[index + 1] for index in range(0, len(TINY), 2)]
    profile = load_settings("mini", changes).profile
    raw = read_manifest(manifest)
    requests, _ = resolve_rows(raw.rows, profile, raw.base_uri, find_profile=get_profile)
    short = next(request for request in requests if request.request_id == "short")
    ledger = Ledger(str(tmp_path / "out"))
    graph = Graph(
        profile=profile,
        ledger=ledger,
        cache=MediaCache(run_id=ledger.run_id),
        model_digests=digest_weights(profile.weights),
    )
    sample = graph.name_sample(short, {})
    video = tmp_path / "video.mp4"
    video.write_bytes(b"x" * 1000)
    measured = {"width": 64, "height": 64, "num_frames": 9}
    seconds = {"stage_seconds": {"condition": 1.0, "denoise": 3.0, "decode": 1.0}}
    request = {"request_id": "short", "request": to_plain(short)}
    attempt = ledger.begin_attempt(sample)
    ledger.commit(sample, attempt.id, video, {**request, **measured, **seconds})

    out = str(tmp_path / "out")
    status, numbers = plan(manifest, tmp_path, "--output", out, "--like", out)
    assert status == 3
    text = capsys.readouterr().out
    assert "4: 1 to render, 2 bad, 1 already there" in text
    assert [row["state"] for row in numbers["rows"]] == ["committed", "render"]
    assert numbers["speed"]["source"] == f"measured over 1 videos of {out}"
    long = numbers["rows"][1]["clip"]
    assert long["video_bytes"] == pytest.approx(61 * 1000 / 9, abs=1)  # as many bytes a pixel
    spent = (long["condition_flops"] + long["denoise_flops"]) / numbers["speed"]["flops_per_s"]
    assert numbers["rows"][1]["worker_s"] > spent
    assert not list((tmp_path / "out").glob("results*"))  # a plan writes nothing


def test_a_row_is_drawn(manifest: str, tmp_path: Path) -> None:
    target = tmp_path / "row.png"
    plan(manifest, tmp_path, "--explain", "long", "--png", str(target), "--workers", "3")
    picture = np.asarray(Image.open(target))
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 25


@pytest.mark.parametrize(
    ("more", "phrase"),
    [
        (["--explain", "nobody"], "no such request_id"),
        (["--explain", "bad"], "cannot be drawn"),
        (["--workers", "0"], "--workers must be N or MIN:MAX"),
        (["--seconds-per-task", "0"], "must be positive"),
        (["--seconds-per-task", "1", "--like", "x"], "give one"),
        (["--like", "memory://empty-run"], "no committed video"),
    ],
)
def test_mistakes_end_with_status_2_and_a_sentence(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], phrase: str
) -> None:
    status, _ = plan(manifest, tmp_path, *more)
    assert status == 2
    assert phrase in capsys.readouterr().err


def test_an_empty_manifest_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.csv").write_text("request_id,prompt\n")
    assert plan(str(tmp_path / "empty.csv"), tmp_path)[0] == 2
    assert "nothing to plan" in capsys.readouterr().err


def test_published_weights_need_not_be_there_and_ray_is_not_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    row = {"request_id": "a", "prompt": "p", "width": 64, "height": 64, "num_frames": 2}
    write_manifest([row], str(tmp_path / "m.csv"))
    noise = ["--set", "sampling.first_frame.origin=noise"]
    assert main([str(tmp_path / "m.csv"), "--profile", "musev", *noise]) == 0
    assert not ray.is_initialized()
    assert "weights 5.51 GB" in capsys.readouterr().out


def test_it_is_a_command_of_musev() -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(musev_app, ["--help"])
    assert "plan" in result.output
