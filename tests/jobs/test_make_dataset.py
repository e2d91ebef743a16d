"""The job from its command line: flags, the plan without Ray, one real run with bad rows in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from jobs.make_dataset import app, main, make_graph
from musev.errors import ConfigError
from musev.training.shards import ShardDataset
from tests.job_flags import flags_of
from tests.pipelines.dataset_parts import write_table

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--set", "width=32", "--set", "height=32", "--set", "num_frames=2"]


def test_the_set_of_flags_changes_only_on_purpose() -> None:
    assert flags_of(app) == {
        "--output",
        "--clips",
        "--seed",
        "--table",
        "--latents",
        "--set",
        "--workers",
        "--dry-run",
        "--retry-failed",
    }


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ([], "either --clips"),
        (["--clips", "3", "--table", "t.csv"], "either --clips"),
        (["--clips", "0"], "clips"),
        (["--clips", "3", "--set", "colour=red"], "no setting 'colour'"),
        (["--clips", "3", "--set", "width"], "KEY=VALUE"),
        (["--clips", "3", "--set", "width=33"], "even"),
        (["--clips", "3", "--latents", "minii"], "Did you mean 'mini'"),
        (["--clips", "3", "--set", "profile.precision=float16"], "needs --latents"),
        (["--table", "nowhere.csv"], "no manifest at"),
    ],
)
def test_a_wrong_command_is_status_2(
    arguments: list[str], phrase: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "out"), *arguments]) == 2
    assert phrase in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_held_out_is_for_drawn_clips(tmp_path: Path) -> None:
    write_table(tmp_path, 1)
    with pytest.raises(ConfigError, match="for drawn clips"):
        make_graph("o", clips=None, table=str(tmp_path / "clips.csv"), changes=["held_out=true"])


def test_settings_reach_the_dataset_and_the_profile() -> None:
    graph = make_graph(
        "o",
        clips=3,
        seed=8,
        latents="mini",
        changes=["fps=4", "encoder.crf=30", "profile.weights.random_seed=5"],
    )
    assert (graph.config.fps, graph.config.encoder.crf) == (4.0, 30)
    assert graph.profile is not None
    assert graph.profile.weights.random_seed == 5
    assert graph.settings["seed"] == 8
    assert "seed=5" in graph.settings["models"]["random"]


def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path: Path) -> None:
    write_table(tmp_path, 3, bad={1: "../x.mp4"})
    code = (
        "import sys; from jobs.make_dataset import main; status = main(sys.argv[1:]); "
        "assert not {'ray', 'torch'} & set(sys.modules); sys.exit(status)"
    )
    arguments = ["--output", str(tmp_path / "out"), "--table", str(tmp_path / "clips.csv")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "to make        1 shards, 2 clips" in done.stdout
    assert "bad row 2 ('c1'), column 'video', value '../x.mp4': path outside" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(200)
def test_a_real_run_from_a_table_with_a_bad_row(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(folder, 3, bad={1: "nowhere.mp4"})
    arguments = ["--output", str(folder / "out"), "--table", str(folder / "clips.csv"), *TINY]
    with mock.patch.dict(os.environ, {"RAY_TMPDIR": str(folder), "MUSEV_CACHE": str(folder / "c")}):
        os.environ.pop("RAY_ADDRESS", None)
        assert main([*arguments, "--workers", "1"]) == 3
    said = capsys.readouterr()
    assert "dataset        2 clips in 1 shards" in said.out
    assert "row 2 ('c1'), column 'video'" in said.out
    assert "3/3 clips, 1 failed" in said.err
    assert ShardDataset(str(folder / "out")).num_clips == 2
    card = json.loads((folder / "out" / "dataset.json").read_text())
    assert card["counts"]["failed"] == 1
    assert "1 of 3 clips failed" in (folder / "out" / "README.md").read_text()

    assert main([*arguments]) == 3  # nothing to make: Ray is not even started
    assert "made           0 clips" in capsys.readouterr().out
