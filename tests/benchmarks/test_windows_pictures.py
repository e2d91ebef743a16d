"""Pictures of the windows study: points stand where their numbers say, seams are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.windows_pictures import chart, main, profiles, short_name
from benchmarks.windows_study import PROFILE_OFFSETS
from benchmarks.windows_table import variants


def _line(variant: str, work: float, ratio: float, num_steps: int = 10) -> dict[str, object]:
    seam = (ratio, ratio - 0.02, ratio + 0.02)
    return {"variant": variant, "num_steps": num_steps, "work": work, "seam_ratio": seam}


def test_short_names_differ_within_a_layout() -> None:
    names = [(v.layout, short_name(v.name)) for v in variants()]
    assert len(set(names)) == len(names)
    assert ("musev", "4 linear") in names
    assert ("rotating", "s2") in names
    assert ("rotating", "s2 linear") in names


def test_more_work_stands_to_the_right_and_fewer_seams_below() -> None:
    lines = [
        _line("musev, overlap 4, flat", 1.5, 1.2),
        _line("rotating, 2 settling", 1.1, 1.05),
        _line("rotating, 0 settling", 1.0, 1.1, num_steps=6),
    ]
    few, many = chart(lines).axes
    assert [few.get_title(), many.get_title()] == ["6 steps", "10 steps"]
    assert few.get_xlim() == many.get_xlim()
    assert few.get_ylim() == many.get_ylim()
    musev, rotating = many.containers
    np.testing.assert_allclose(musev.lines[0].get_xydata(), [[1.5, 1.2]])
    np.testing.assert_allclose(rotating.lines[0].get_xydata(), [[1.1, 1.05]])
    whisker = rotating.lines[2][0].get_segments()[0]
    np.testing.assert_allclose(whisker, [[1.1, 1.03], [1.1, 1.07]])
    assert [text.get_text() for text in many.texts] == ["4", "s2"]


def test_a_line_is_high_where_the_change_is() -> None:
    flat, steep = [1.0] * len(PROFILE_OFFSETS), [1.0] * len(PROFILE_OFFSETS)
    steep[2] = 1.21  # into the first frame of the overlap
    names = ["rotating, 2 settling", "musev, overlap 4, flat"]
    render = {"num_steps": 10, "clip": 0, "seed": 0}
    rows: list[dict[str, object]] = [
        {"variant": names[0], "profile": flat, **render},
        {"variant": names[1], "profile": steep, **render},
        {"variant": names[0], "profile": flat, **render, "clip": 2},
        {"variant": names[1], "profile": flat, **render, "clip": 2},
        {"variant": names[0], "profile": steep, **render, "clip": 1},  # only one of them has it
        {"variant": names[1], **render, "clip": 1},  # measured before there were profiles
    ]
    (panel,) = profiles(rows, names).axes
    lines = {line.get_label(): line.get_xydata() for line in panel.lines}
    np.testing.assert_allclose(lines[names[0]][:, 1], 1)
    spot = PROFILE_OFFSETS.index(0)
    np.testing.assert_allclose(lines[names[1]][spot], [0, 1.1])  # the geometric mean of both clips
    np.testing.assert_allclose(np.delete(lines[names[1]], spot, axis=0)[:, 1], 1)
    assert "2 renders" in panel.get_title()


@pytest.mark.slow
def test_seams_of_real_renders_are_drawn(tmp_path: Path) -> None:
    picture, rows = tmp_path / "seams.png", tmp_path / "rows.jsonl"
    names = ["musev, overlap 4, flat", "rotating, 2 settling"]
    few = ["--frames", "41", "--steps", "3"]
    main(["--strips", str(picture), *few, *(x for name in names for x in ("--variant", name))])
    assert Image.open(picture).size[1] == 2 * (128 + 16)
    rows.write_text(
        json.dumps(
            {
                "variant": names[0],
                "num_steps": 3,
                "clip": 0,
                "seed": 0,
                "work": 1.5,
                "seam_ratio": 1.1,
                "pck_0.1": 0.9,
                "psnr": 20.0,
            }
        )
    )
    main(["--rows", str(rows), "--chart", str(tmp_path / "chart.png")])
    assert np.asarray(Image.open(tmp_path / "chart.png").convert("L")).std() > 5
