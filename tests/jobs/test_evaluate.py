"""The evaluation from its command line: on any run's output, and on held-out requests."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app as musev
from jobs.evaluate import app, main
from musev.config import EncoderConfig, to_plain
from musev.media import write_segment
from musev.synthetic.clips import draw_clip
from pipelines.ledger import RESULTS, Ledger
from tests.job_flags import flags_of
from tests.pipelines.stand_ins import request

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(280)


def test_the_set_of_flags_changes_only_on_purpose() -> None:
    assert flags_of(app) == {
        "output",
        "--profile",
        "--requests",
        "--seed",
        "--text-to-pose",
        "--json",
        "--set",
        "--workers",
    }


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "give the output of a run"),
        (["out", "--set", "sampling.num_steps=2"], 2, "--requests"),
        (["out", "--text-to-pose"], 2, "--requests"),
        (["--requests", "2", "--profile", "nobody"], 2, "no profile"),
        (["--requests", "2", "--set", "colour=red"], 2, "colour"),
        (["--requests", "0"], 2, "--requests"),
        (["{folder}/nothing"], 1, "no committed videos"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    assert main([argument.format(folder=folder) for argument in arguments]) == status
    assert words in capsys.readouterr().err


def test_musev_evaluate_is_the_same_job() -> None:
    told = CliRunner().invoke(musev, ["evaluate", "--help"])
    assert told.exit_code == 0
    assert "--requests" in told.output


def commit_drawn(ledger: Ledger, name: str, folder: Path) -> None:
    clip = draw_clip(3, 5, height=64, width=64, num_frames=8)
    video = folder / "video.mp4"
    write_segment(video, clip.frames_TYXC, fps=8.0, encoder=EncoderConfig())
    asked = request(name, prompt=clip.caption, num_frames=8, height=64, width=64, fps=8.0)
    measured = {"fps": 8.0, "num_frames": 8, "height": 64, "width": 64}
    attempt, _ = ledger.begin_attempt(name)
    ledger.commit(
        name, attempt, video, {"request_id": name, "request": to_plain(asked), **measured}
    )
    ledger.write_results([(name, name, {})])


def run_job(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_any_runs_output_is_judged_once(folder: Path) -> None:
    ledger = Ledger(str(folder / "out"))
    commit_drawn(ledger, "one", folder)
    first = run_job(folder / "out", "--json", folder / "scores.json", "--workers", 1)
    assert first.returncode == 0, first.stderr
    assert "1 of 1 videos judged" in first.stderr
    report = json.loads((folder / "scores.json").read_text())
    assert report["scene_accuracy"] == 1
    assert "applies to" in report["skipped"]["pck_0.1"]
    table = pq.read_table(io.BytesIO(ledger.store.read(RESULTS)))
    assert dict(table["metrics"].to_pylist()[0])["scene_accuracy"] == 1
    again = run_job(folder / "out")
    assert again.returncode == 0, again.stderr
    assert "1 judged before" in again.stderr
    assert "videos judged" not in again.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_held_out_requests_of_random_networks_score_as_noise_does(folder: Path) -> None:
    """Every kind of request goes through the ordinary job; a second call does nothing again."""
    arguments = ("--requests", 4, "--seed", 3, "--json", folder / "scores.json", "--workers", 1)
    small = ("--set", "sampling.num_steps=1", "--set", "sampling.first_frame.num_steps=1")
    first = run_job(folder / "out", *arguments, *small)
    assert first.returncode == 0, first.stderr
    report = json.loads((folder / "scores.json").read_text())
    assert (report["rendered"], report["failed"]) == (4, 0)
    assert report["changes"] == ["sampling.num_steps=1", "sampling.first_frame.num_steps=1"]
    names = "scene_accuracy shirt_color_accuracy trousers_color_accuracy action_accuracy pck_0.1 "
    names += "identity_accuracy seam_ratio drift_slope flicker"
    for name in names.split():
        assert report[name] is not None, name
        assert report["details"][name]["n"] >= 1
    assert report["pck_0.1"] < 0.6
    assert report["details"]["flicker"]["low"] < report["flicker"]
    before = (folder / "scores.json").read_text()
    second = run_job(folder / "out", *arguments, *small)
    assert second.returncode == 0, second.stderr
    assert "already there  4 rows" in second.stdout
    assert "4 judged before" in second.stderr
    assert (folder / "scores.json").read_text() == before
