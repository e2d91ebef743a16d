"""The job through ``ray job submit`` on a real local head with a dashboard."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.manifest import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **ours,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,  # this head's own, not the user's
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture
def head(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A head node on free ports; ended by its process id."""
    port = free_port()
    command = [
        *(RAY, "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", str(folder / "ray")),
        *("--port", str(free_port()), "--include-dashboard", "true"),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(port)),
        *("--dashboard-agent-listen-port", str(free_port())),
        *("--dashboard-agent-grpc-port", str(free_port())),
        *("--ray-client-server-port", str(free_port())),
        *("--object-store-memory", str(200 * 2**20)),
    ]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until_it_answers(port, process, folder / "head.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def wait_until_it_answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)


def test_a_submitted_job_renders_on_the_cluster_it_was_submitted_to(
    folder: Path, environment: dict[str, str], head: str
) -> None:
    rows = [
        {"request_id": f"clip-{number}", "prompt": f"person {number} waves", "num_frames": 4}
        for number in range(3)
    ]
    manifest = folder / "manifest.parquet"
    write_manifest(rows, str(manifest))
    command = [
        *(RAY, "job", "submit", "--address", head, "--working-dir", str(ROOT), "--"),
        *(sys.executable, "-m", "jobs.text_to_video", "--manifest", str(manifest)),
        *("--output", str(folder / "out"), "--workers", "2"),
        *("--set", "width=64", "--set", "height=64", "--set", "sampling.num_steps=2"),
    ]
    # From another folder: the code must come from the working directory that was submitted.
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "succeeded" in told
    assert "frames/s" in told  # progress is readable in the job's log
    table = pq.read_table(folder / "out" / "results.parquet")
    assert table["status"].to_pylist() == ["committed"] * 3
    assert sorted(table["request_id"].to_pylist()) == [row["request_id"] for row in rows]
    sessions = list((folder / "ray").glob("session_2*"))
    assert len(sessions) == 1, "the job started a Ray of its own instead of joining the head"
