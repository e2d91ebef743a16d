"""Text to pose from its command line: prompts in, a manifest out whose videos show the action."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app as musev
from jobs.text_to_pose import app, main
from jobs.text_to_video import main as render
from musev.control.person import scan_poses
from musev.media import read_video
from musev.quality.attributes import read_action
from musev.quality.pose import find_people
from pipelines.ledger import RESULTS
from pipelines.manifest import read_manifest, write_manifest
from tests.job_flags import flags_of
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(280)
PROMPTS = ("a person in a red shirt and blue trousers is squatting on the beach", "a quiet beach")


def manifest_at(folder: Path, *prompts: str) -> str:
    rows = [
        {"request_id": f"r{number}", "prompt": prompt, "num_frames": 13, "seed": 7}
        for number, prompt in enumerate(prompts)
    ]
    uri = str(folder / "prompts.parquet")
    write_manifest(rows, uri)
    return uri


def test_the_set_of_flags_changes_only_on_purpose() -> None:
    assert flags_of(app) == {
        "--manifest",
        "--output",
        "--profile",
        "--set",
        "--weights",
        "--steps",
        "--guidance",
        "--workers",
    }


def test_musev_text_to_pose_is_the_same_job() -> None:
    told = CliRunner().invoke(musev, ["text-to-pose", "--help"])
    assert told.exit_code == 0
    assert "--guidance" in told.output


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--weights", "package:nobody"], 1, "drawn-poses"),
        (["--weights", "{folder}/nothing"], 1, "config.json"),
        (["--profile", "nobody"], 2, "no profile"),
        (["--profile", "musev"], 2, "ControlNet"),
        (["--workers", "none"], 2, "--workers"),
        (["--steps", "0"], 2, "--steps"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_makes_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    given = ["--manifest", manifest_at(folder, *PROMPTS), "--output", str(folder / "out")]
    assert main([*given, *(word.format(folder=folder) for word in arguments)]) == status
    assert words in capsys.readouterr().err
    assert not (folder / "out" / "manifest.parquet").exists()


def test_a_video_shows_the_action_of_its_prompt(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way: words to joints, joints to a video, the video before the judge of actions."""
    source = manifest_at(folder, *PROMPTS)
    poses, out = folder / "poses", folder / "out"
    with local_ray():
        assert main(["--manifest", source, "--output", str(poses), "--workers", "2"]) == 0
    told = capsys.readouterr().out
    assert "1 of 2 rows" in told
    assert "as they were   1" in told
    rows = read_manifest(str(poses / "manifest.parquet")).rows
    assert scan_poses(Path(rows[0]["keypoints"].removeprefix("file://"))).num_frames == 13
    assert not rows[1].get("keypoints")
    with local_ray():
        assert render(["--manifest", str(poses / "manifest.parquet"), "--output", str(out)]) == 0
    results = {row["request_id"]: row for row in pq.read_table(out / RESULTS).to_pylist()}
    video = results["r0"]["video_uri"].removeprefix("file://")
    frames_TYXC = np.stack(list(read_video(Path(video))))
    assert read_action(find_people(frames_TYXC), frames_TYXC.shape[1:3]).word == "squatting"


def test_bad_rows_are_told_and_stay_in_the_manifest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder / "prompts.jsonl"
    source.write_text(
        '{"request_id": "bad", "prompt": "a person is waving", "num_frames": -3}\n'
        '{"request_id": "quiet", "prompt": "a beach"}\n'
    )
    assert main(["--manifest", str(source), "--output", str(folder / "out")]) == 3
    assert "num_frames" in capsys.readouterr().err
    rows = read_manifest(str(folder / "out" / "manifest.parquet")).rows
    assert [row["request_id"] for row in rows] == ["bad", "quiet"]
