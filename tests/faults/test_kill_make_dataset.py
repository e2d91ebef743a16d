"""Kill the driver of a real run that makes a dataset, and run the same command again.

pytest -m faults -s tests/faults/test_kill_make_dataset.py      (prints the figures)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from musev.training.shards import ShardDataset
from tests.faults.drivers import end_processes_of, start_driver

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
NUM_CLIPS, CLIPS_PER_SHARD, NUM_SHARDS = 38, 4, 10
KILL_AFTER = 3


def start_job(folder: Path, name: str, workers: int) -> subprocess.Popen[bytes]:
    """Start the job; its log and its output carry the name."""
    return start_driver(
        folder,
        name,
        *("jobs.make_dataset", "--output", str(folder / name)),
        *("--clips", str(NUM_CLIPS), "--seed", "3", "--workers", str(workers)),
        *("--set", f"clips_per_shard={CLIPS_PER_SHARD}", "--set", "num_frames=5"),
    )


def seen_by_readers(out: Path) -> dict[str, bytes]:
    files = [*out.glob("*"), *(out / "shards").glob("*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.is_file()}


def commits(out: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (out / "commits").glob("*.json")}


def test_a_killed_driver_loses_and_doubles_no_clip(folder: Path) -> None:
    calm, killed = folder / "calm", folder / "killed"
    assert start_job(folder, "calm", workers=1).wait(400) == 0

    job = start_job(folder, "killed", workers=2)
    deadline = time.monotonic() + 400
    while len(commits(killed)) < KILL_AFTER:
        assert job.poll() is None, (folder / "killed.log").read_text()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.wait(60)
    for session in folder.glob("ray-*"):
        end_processes_of(session)
    saved = commits(killed)
    assert KILL_AFTER <= len(saved) < NUM_SHARDS
    assert not (killed / "index.parquet").exists(), "half a dataset must not look whole"

    assert start_job(folder, "killed", workers=2).wait(400) == 0
    resumed = commits(killed)
    assert len(resumed) == NUM_SHARDS
    assert {name: resumed[name] for name in saved} == saved, "a finished shard was made again"
    assert seen_by_readers(killed) == seen_by_readers(calm)
    dataset = ShardDataset(str(killed))
    clips = [json.loads(files["json"])["index"] for files in dataset.read(range(NUM_CLIPS))]
    assert clips == list(range(NUM_CLIPS))
    assert dataset.num_clips == NUM_CLIPS
    left = [p for p in (killed / "work").rglob("*") if p.is_file() and "runs" not in p.parts]
    assert left == []
    sys.stdout.write(
        f"\nkill and resume: {NUM_SHARDS} shards, driver killed with {len(saved)} committed; "
        f"second run made {len(resumed) - len(saved)}, none twice; all files byte-equal to a calm "
        "run on another number of workers\n"
    )
