"""Kill the driver of a real run in the middle and run the same command again.

pytest -m faults -s tests/faults/test_kill_and_resume.py      (prints the figures)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from musev.media import encode_png
from musev.synthetic.portraits import draw_portrait
from pipelines.manifest import write_manifest
from tests.faults.drivers import end_processes_of, start_driver

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS = 8
KILL_AFTER_COMMITS = 3


def write_inputs(folder: Path) -> Path:
    face = folder / "person.png"
    face.write_bytes(encode_png(draw_portrait(3, width=96, height=96)))
    rows = [
        {
            "request_id": f"clip-{number}",
            "condition_image": face.name,
            "prompt": f"person number {number} nods",
            "num_frames": 13 + number % 3,
            "seed": number,
        }
        for number in range(NUM_ROWS)
    ]
    manifest = folder / "manifest.parquet"
    write_manifest(rows, str(manifest))
    return manifest


def start_job(folder: Path, manifest: Path, name: str) -> subprocess.Popen[bytes]:
    """Start the job on two workers; its log and its output carry the name."""
    return start_driver(
        folder,
        name,
        *("jobs.text_to_video", "--manifest", str(manifest)),
        *("--output", str(folder / name), "--workers", "2"),
        *("--set", "width=64", "--set", "height=64", "--set", "sampling.num_steps=4"),
    )


def commits(folder: Path, name: str) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (folder / name / "commits").glob("*.json")}


def digests(records: dict[str, bytes]) -> dict[str, str]:
    return {name: json.loads(data)["sha256"] for name, data in records.items()}


def wait_for_commits(folder: Path, name: str, job: subprocess.Popen[bytes], count: int) -> None:
    deadline = time.monotonic() + 400
    while len(commits(folder, name)) < count:
        assert job.poll() is None, (folder / f"{name}.log").read_text()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.05)


def test_a_killed_driver_costs_only_the_rows_in_work(folder: Path) -> None:
    manifest = write_inputs(folder)
    assert start_job(folder, manifest, "calm").wait(400) == 0
    calm = commits(folder, "calm")
    assert len(calm) == NUM_ROWS

    job = start_job(folder, manifest, "killed")
    wait_for_commits(folder, "killed", job, KILL_AFTER_COMMITS)
    os.kill(job.pid, signal.SIGKILL)
    job.wait(60)
    leftovers = sum(end_processes_of(session) for session in folder.glob("ray-*"))
    saved = commits(folder, "killed")
    assert KILL_AFTER_COMMITS <= len(saved) < NUM_ROWS
    begun = {path.parts[-3] for path in (folder / "killed" / "work").glob("*/attempts/*.json")}

    assert start_job(folder, manifest, "killed").wait(400) == 0
    resumed = commits(folder, "killed")
    records = [json.loads(data) for data in resumed.values()]
    in_second_run = {r["sample_id"] for r in records} - set(saved)

    assert len(resumed) == NUM_ROWS, "a row was lost"
    assert {name: resumed[name] for name in saved} == saved, "a finished row was computed again"
    assert digests(resumed) == digests(calm), "bytes differ from the undisturbed run's"
    assert {r["attempts"] for r in records} == {1}, "an interruption was held against a row"
    table = pq.read_table(folder / "killed" / "results.parquet")
    assert table["status"].to_pylist() == ["committed"] * NUM_ROWS
    left = [
        path for path in (folder / "killed" / "work").rglob("*.json") if "runs" not in path.parts
    ]
    assert left == []
    sys.stdout.write(
        f"\nkill and resume: {NUM_ROWS} rows, driver killed with {len(saved)} committed and "
        f"{len(begun - set(saved))} in work, {leftovers} processes left over; second run rendered "
        f"{len(in_second_run)}, none twice, {NUM_ROWS} of {NUM_ROWS} byte-equal to a calm run\n"
    )


def test_sigterm_ends_in_order_and_loses_nothing(folder: Path) -> None:
    manifest = write_inputs(folder)
    job = start_job(folder, manifest, "out")
    wait_for_commits(folder, "out", job, 1)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(120) == 130
    assert "run the same command again" in (folder / "out.log").read_text()
    runs = list((folder / "out" / "work" / "runs").glob("*.json"))
    assert [json.loads(path.read_text())["reason"] for path in runs] == ["interrupted"]
    saved = commits(folder, "out")
    assert start_job(folder, manifest, "out").wait(400) == 0
    resumed = commits(folder, "out")
    assert len(resumed) == NUM_ROWS
    assert {name: resumed[name] for name in saved} == saved
