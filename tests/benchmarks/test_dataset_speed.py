from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_report_adds_up(tmp_path: Path) -> None:
    target = tmp_path / "speed.json"
    command = [sys.executable, "benchmarks/dataset_speed.py", "--clips", "2", "--size", "32x32"]
    subprocess.run(
        [*command, "--frames", "2", "--json", str(target)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    report = json.loads(target.read_text())
    spent = report["draw_ms"] + report["write_ms"] + report["ffmpeg_ms"]
    assert abs(report["clips_a_second_a_core"] * spent - 1000) < 20
    assert report["bytes_a_clip"] > 1000
