"""One long clip, and whatever can be taken away from under it.

pytest -m faults -s tests/faults/test_long_clip.py      (prints the figures)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipelines.manifest import write_manifest
from pipelines.resources import ClusterShape
from pipelines.text_to_video import check_inputs, render_rows
from tests.faults.drivers import end_processes_of, start_driver
from tests.pipelines.conducting import PROFILE, NotedEngine, long_request, rendered_here
from tests.pipelines.stand_ins import graph

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

NUM_FRAMES, STEPS = 70, 6


def write_row(folder: Path) -> Path:
    row = {"request_id": "long", "prompt": "a woman waves in a park", "seed": 5}
    manifest = folder / "manifest.parquet"
    write_manifest([{**row, "num_frames": NUM_FRAMES}], str(manifest))
    return manifest


def start_job(folder: Path, name: str, workers: str) -> subprocess.Popen[bytes]:
    settings = {
        "width": "64",
        "height": "64",
        "sampling.num_steps": str(STEPS),
        "sampling.windows.layout": "musev",
        "encoder.segment_frames": "16",
    }
    changes = [word for item in settings.items() for word in ("--set", "=".join(item))]
    return start_driver(
        folder,
        name,
        *("jobs.text_to_video", "--manifest", str(folder / "manifest.parquet")),
        *("--output", str(folder / name), "--workers", workers, *changes),
    )


def commit_of(folder: Path, name: str) -> dict[str, Any]:
    (path,) = (folder / name / "commits").glob("*.json")
    return json.loads(path.read_text())


def test_a_killed_driver_costs_a_checkpoint_interval_and_no_byte(folder: Path) -> None:
    write_row(folder)
    assert start_job(folder, "calm", "1").wait(400) == 0, (folder / "calm.log").read_text()
    calm = commit_of(folder, "calm")
    assert calm["tasks"]["resumed_tasks"] == 0

    job = start_job(folder, "killed", "2")
    deadline = time.monotonic() + 400
    indices: set[str] = set()
    while len(indices) < 2:  # two checkpoints: well into the clip
        assert job.poll() is None, (folder / "killed.log").read_text()
        assert time.monotonic() < deadline, "no progress"
        indices |= {path.name for path in (folder / "killed").rglob("index-*.safetensors")}
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.wait(60)
    for session in folder.glob("ray-*"):
        end_processes_of(session)
    assert not list((folder / "killed" / "commits").glob("*.json"))

    assert start_job(folder, "killed", "1:3").wait(400) == 0, (folder / "killed.log").read_text()
    resumed = commit_of(folder, "killed")
    total = calm["tasks"]["tasks"]
    assert resumed["sha256"] == calm["sha256"]
    assert resumed["num_frames"] == NUM_FRAMES
    assert resumed["tasks"]["tasks"] + resumed["tasks"]["resumed_tasks"] == total
    assert resumed["tasks"]["resumed_tasks"] >= 2 * total // STEPS, "two steps are an interval"
    work = [path for path in (folder / "killed" / "work").rglob("*") if path.is_file()]
    assert [path for path in work if "runs" not in path.parts] == []
    sys.stdout.write(
        f"\nlong clip, driver killed: {total} tasks, {resumed['tasks']['resumed_tasks']} saved by "
        "the checkpoint, bytes equal to a calm run of one worker\n"
    )


def test_a_machine_leaves_and_another_comes_while_a_clip_runs(folder: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    temporary = tempfile.mkdtemp(prefix="mvn", dir="/tmp")
    quiet = {"RAY_TMPDIR": temporary, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with mock.patch.dict(os.environ, quiet):
        os.environ.pop("RAY_ADDRESS", None)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "object_store_memory": 128 * 2**20},
        )
        try:
            first = cluster.add_node(num_cpus=0, num_gpus=2, object_store_memory=100 * 2**20)
            ray.init(address=cluster.address, log_to_driver=False)
            _run_while_machines_change(folder, cluster, first)
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)


def _run_while_machines_change(folder: Path, cluster: Any, first: Any) -> None:
    clip, engine = long_request(), NotedEngine(folder, seconds=0.4)
    wired = graph(
        folder,
        profile=PROFILE,
        load_engine=engine,
        shape=ClusterShape(num_cpus=2, num_gpus=2),
        num_workers=2,
    )
    rows = list(check_inputs(wired, [clip]))
    outcomes: list[dict[str, Any]] = []
    run = threading.Thread(
        target=lambda: outcomes.extend(render_rows(wired, rows, on_tick=lambda *_: None)),
        daemon=True,
    )
    run.start()
    deadline = time.monotonic() + 300
    while len(engine.windows()) < 10:
        assert run.is_alive()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)
    before = engine.workers()
    cluster.remove_node(first, allow_graceful=False)
    cluster.add_node(num_cpus=0, num_gpus=2, object_store_memory=100 * 2**20)
    run.join(400)
    assert [row["status"] for row in outcomes] == ["committed"]
    (record,) = wired.ledger.committed().values()
    assert record["sha256"] == hashlib.sha256(rendered_here(folder, clip)).hexdigest()
    assert engine.workers() - before, "the new machine has computed"
    assert record["tasks"]["lost"] >= 1
    assert len(engine.windows()) <= 40 + 2, "only what was in the lost workers' hands"
    sys.stdout.write(f"\nmachines changed at {len(before)} workers: {record['tasks']}\n")
