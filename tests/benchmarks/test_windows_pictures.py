"""Pictures of the windows study: points stand where their numbers say, seams are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.windows_pictures import (
    _LINES,
    COLORS,
    PANEL_PX,
    chart,
    main,
    profiles,
    short_name,
)
from benchmarks.windows_study import PROFILE_OFFSETS, variants


def _line(variant: str, work: float, ratio: float, num_steps: int = 10) -> dict[str, object]:
    seam = (ratio, ratio - 0.02, ratio + 0.02)
    return {"variant": variant, "num_steps": num_steps, "work": work, "seam_ratio": seam}


def _middle(image: Image.Image, layout: str) -> tuple[float, float]:
    """Mean (x, y) of a layout's pixels below the legend."""
    found = np.argwhere((np.asarray(image) == COLORS[layout]).all(axis=-1))
    found = found[found[:, 0] > 90]
    return float(found[:, 1].mean()), float(found[:, 0].mean())


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
    image = chart(lines)
    assert image.size == (2 * PANEL_PX[0], PANEL_PX[1])
    panels = [image.crop((n * PANEL_PX[0], 0, (n + 1) * PANEL_PX[0], PANEL_PX[1])) for n in (0, 1)]
    few, many = panels
    assert _middle(many, "rotating")[0] < _middle(many, "musev")[0]
    assert _middle(many, "rotating")[1] > _middle(many, "musev")[1]
    assert _middle(few, "rotating")[0] < _middle(many, "rotating")[0]


def test_a_line_is_high_where_the_change_is() -> None:
    flat, steep = [1.0] * len(PROFILE_OFFSETS), [1.0] * len(PROFILE_OFFSETS)
    steep[2] = 1.2  # into the first frame of the overlap
    names = ["rotating, 2 settling", "musev, overlap 4, flat"]
    render = {"num_steps": 10, "clip": 0, "seed": 0}
    rows: list[dict[str, object]] = [
        {"variant": names[0], "profile": flat, **render},
        {"variant": names[1], "profile": steep, **render},
        {"variant": names[0], "profile": steep, **render, "clip": 1},  # only one of them has it
        {"variant": names[1], **render, "clip": 1},  # measured before there were profiles
    ]
    pixels = np.asarray(profiles(rows, names))[40:]
    ends = {}
    for name, color in zip(names, _LINES, strict=False):
        found = np.argwhere((pixels == color).all(axis=-1))
        found = found[found[:, 0] > 40]  # below the legend
        ends[name] = found[found[:, 0].argmin()]
    assert ends[names[1]][0] < ends[names[0]][0]
    assert ends[names[1]][1] < pixels.shape[1] / 2


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
    assert Image.open(tmp_path / "chart.png").size == PANEL_PX
