"""Runs a benchmark that starts a Ray of its own, with tiny numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_script(name: str, *arguments: str) -> dict[str, Any]:
    """Run ``benchmarks/<name>.py`` and read its report.

    Args:
        name: Of the script.
        *arguments: Beside ``--json``.

    Returns:
        The report.
    """
    # Sockets of Ray need short paths, shorter than those of pytest's folders.
    with tempfile.TemporaryDirectory(prefix="mvr", dir="/tmp") as folder:
        target = Path(folder) / "report.json"
        command = [sys.executable, f"benchmarks/{name}.py", *arguments, "--json", str(target)]
        settings = {
            "RAY_TMPDIR": folder,
            "OMP_NUM_THREADS": "1",
            "PATH": os.environ["PATH"],
            "HOME": folder,
        }
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(target.read_text())
