"""The script finds, draws, counts and times; its sheet shows the drawing over the picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import poses
from musev.control.pose_embedded import EmbeddedEngine
from musev.errors import WeightsError
from tests.goldens import GOLDENS

MONA_LISA = GOLDENS.parent / "media" / "Mona_Lisa.jpg"


def test_a_folder_without_pictures_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["poses.py", "--pictures", str(tmp_path)])
    poses.main()
    assert f"no pictures (*.jpg) in {tmp_path}" in capsys.readouterr().out


def test_a_sheet_and_numbers_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not MONA_LISA.is_file():
        pytest.skip(f"no reference media at {MONA_LISA.parent}")
    try:
        EmbeddedEngine().close()
    except WeightsError as error:
        pytest.skip(str(error))
    Image.open(MONA_LISA).resize((200, 300)).save(tmp_path / "one.jpg")
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(poses, "REPEATS", 1)
    monkeypatch.setattr(poses, "BENCH_HEIGHT_PX", 200)
    monkeypatch.setattr(
        sys, "argv", ["poses.py", "--pictures", str(tmp_path), "--sheet", str(sheet)]
    )
    poses.main()
    printed = capsys.readouterr().out
    assert "one.jpg: body 1" in printed
    assert "face 68/68" in printed
    assert printed.count("frames/s a core") == 4
    drawn = np.asarray(Image.open(sheet).convert("RGB"))
    assert drawn.shape == (2 * poses.HEIGHT_PX, 200, 3)
    assert (drawn[poses.HEIGHT_PX :].max(axis=2) > 200).sum() > 50
