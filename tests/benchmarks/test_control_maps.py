from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def test_what_runs_is_measured_and_drawn_and_what_does_not_says_why(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "noise.png")
    command = [
        sys.executable,
        "benchmarks/control_maps.py",
        "--picture",
        str(tmp_path / "noise.png"),
    ]
    command += ["--names", "canny", "tile", "hed", "--height", "64", "--sheet-height", "64"]
    command += ["--json", str(tmp_path / "speed.json"), "--sheet", str(tmp_path / "sheet.png")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    rows = {row["name"]: row for row in json.loads((tmp_path / "speed.json").read_text())}
    assert rows["canny"]["frames_a_second"] > 1
    assert rows["canny"]["lacks"] == ""
    assert "ControlNetHED.pth" in rows["hed"]["lacks"]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    picture = np.asarray(Image.open(tmp_path / "noise.png"))
    np.testing.assert_array_equal(sheet[6:70, 6:70], picture)
    edges = sheet[6:70, 76:140]
    assert set(np.unique(edges)) == {0, 255}
