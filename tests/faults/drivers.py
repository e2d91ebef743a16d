"""Drivers that can be killed: real jobs in processes of their own, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start_driver(folder: Path, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a job with a Ray session folder of its own, by which its processes are known.

    Args:
        folder: The session folder and the log ``<name>.log`` lie in it.
        name: Of the log.
        module: Of the job.
        *arguments: Its command line.

    Returns:
        The driver.
    """
    session = Path(tempfile.mkdtemp(prefix="ray-", dir=folder))
    environment = {**os.environ, "RAY_TMPDIR": str(session), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", module, *arguments]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def end_processes_of(session: Path) -> int:
    """Kill what a dead driver left running, by process id; returns how many there were."""
    marker = f"RAY_TMPDIR={session}".encode()
    killed = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
    return killed
