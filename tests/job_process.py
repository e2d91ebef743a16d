"""Run a job as a user does: a process of its own, with a Ray of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_job(module: str, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` to its end.

    Args:
        module: For example ``jobs.text_to_video``.
        arguments: Its command line.
        timeout_s: Longest time.

    Returns:
        Status and what it said.
    """
    ray_folder = tempfile.mkdtemp(prefix="mvr", dir="/tmp")  # Ray's sockets need a short path
    environment = {**os.environ, "RAY_TMPDIR": ray_folder, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    try:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
