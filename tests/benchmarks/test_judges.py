"""The benchmark of the judges runs, and its tables have a line a judge."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from musev.quality.clip import ALWAYS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "judges.py"


@pytest.mark.slow
def test_both_tables_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["judges.py", "--clips", "3", "--controls", "2"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    told = capsys.readouterr().out
    assert "| pck_0.1 | 0.9" in told or "| pck_0.1 | 1.0" in told
    assert "| scene_accuracy | 1.000" in told
    for name in (*ALWAYS, "seam_ratio"):
        assert f"| {name} |" in told
    assert "every fourth frame black 0.25" in told
