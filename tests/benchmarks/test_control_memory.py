from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_piece_of_every_length_is_made(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/control_memory.py", "--side", "64", "--name", "tile"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--frames", "3", "100"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["3", "1"], ["100", "2"]]
    assert all(float(row[2]) > 1 for row in rows)
