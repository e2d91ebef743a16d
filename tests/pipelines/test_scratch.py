from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.scratch import scratch_folder


def test_folders_of_dead_processes_go_and_those_of_living_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = scratch_folder()
    (mine / "old").touch()
    for pid in (dead.pid, os.getppid()):
        (mine.parent / str(pid)).mkdir()
    (mine.parent / "not-a-process").mkdir()
    assert scratch_folder() == mine
    assert list(mine.iterdir()) == []
    left = {path.name for path in mine.parent.iterdir()}
    assert left == {str(os.getpid()), str(os.getppid()), "not-a-process"}
