"""Pictures of the windows study: seams against work, and what seams look like.

    python -m benchmarks.windows_pictures --rows out/windows.jsonl --chart docs/images/windows.png
    python -m benchmarks.windows_pictures --strips docs/images/seams.png --clip 3 \
        --variant "musev, overlap 4, flat" --variant "rotating, 2 settling"

Axes here: Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.windows_study import (
    PROFILE_OFFSETS,
    Point,
    Study,
    read_rows,
    summarise,
    variants,
)

PANEL_PX = (520, 400)
MARGINS_PX = (52, 34, 14, 40)
"""Left, top, right, bottom."""
COLORS = {"musev": (31, 93, 160), "upstream": (201, 99, 24), "rotating": (36, 132, 72)}
_LINES = ((31, 93, 160), (201, 99, 24), (36, 132, 72), (150, 40, 120), (110, 110, 110))
_INK, _GRID = (40, 40, 40), (222, 222, 222)
_LABEL_PX = 16


def short_name(variant: str) -> str:
    """What a point is labelled: ``4`` for an overlap, ``s2`` for settling steps, ``4 linear``."""
    layout, _, rest = variant.partition(", ")
    if layout == "rotating":
        settling, _, blend = rest.partition(", ")
        return f"s{settling.split()[0]} {blend}".rstrip()
    overlap, _, blend = rest.removeprefix("overlap ").partition(", ")
    return overlap if blend == "flat" else f"{overlap} {blend}"


def chart(lines: Sequence[dict[str, Any]]) -> Image.Image:
    """Draw seam ratio against work, a panel for each number of steps.

    Args:
        lines: From :func:`benchmarks.windows_study.summarise`.

    Returns:
        The picture; whiskers are 95 percent intervals.
    """
    steps = sorted({line["num_steps"] for line in lines})
    known = [line for line in lines if math.isfinite(line["seam_ratio"][0])]
    works = [line["work"] for line in known]
    ends = [end for line in known for end in line["seam_ratio"]]
    spans = (min(works) - 0.05, max(works) + 0.15), (min(0.98, *ends), max(ends) + 0.02)
    width, height = PANEL_PX
    image = Image.new("RGB", (len(steps) * width, height), "white")
    draw = ImageDraw.Draw(image)
    for number, num_steps in enumerate(steps):
        own = [line for line in known if line["num_steps"] == num_steps]
        _panel(draw, own, number * width, spans, f"{num_steps} steps")
    return image


def _panel(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[dict[str, Any]],
    left: int,
    spans: tuple[tuple[float, float], tuple[float, float]],
    title: str,
) -> None:
    (low_x, high_x), (low_y, high_y) = spans
    margin_left, top, right, bottom = MARGINS_PX
    x0, x1 = left + margin_left, left + PANEL_PX[0] - right
    y0, y1 = PANEL_PX[1] - bottom, top

    def place(work: float, ratio: float) -> tuple[float, float]:
        across, up = (work - low_x) / (high_x - low_x), (ratio - low_y) / (high_y - low_y)
        return x0 + across * (x1 - x0), y0 + up * (y1 - y0)

    font = ImageFont.load_default()
    draw.text((x0, 10), f"{title}: seam ratio (1: invisible) against work", fill=_INK, font=font)
    for ratio in np.arange(math.ceil(low_y * 20) / 20, high_y, 0.05 if high_y < 1.4 else 0.1):
        y = place(low_x, float(ratio))[1]
        draw.line([(x0, y), (x1, y)], fill=_INK if abs(ratio - 1) < 1e-6 else _GRID)
        draw.text((left + 8, y - 6), f"{ratio:.2f}", fill=_INK, font=font)
    for work in np.arange(math.ceil(low_x * 5) / 5, high_x, 0.2):
        x = place(float(work), low_y)[0]
        draw.text((x - 8, y0 + 8), f"{work:.1f}", fill=_INK, font=font)
    for line in lines:
        color = COLORS[line["variant"].partition(",")[0]]
        mean, low, high = line["seam_ratio"]
        x, y = place(line["work"], mean)
        draw.line([place(line["work"], low), place(line["work"], high)], fill=color)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=color)
        draw.text((x + 7, y - 6), short_name(line["variant"]), fill=color, font=font)
    for row, (layout, color) in enumerate(COLORS.items()):
        draw.text((x1 - 70, y1 + 12 * row), layout, fill=color, font=font)


def profiles(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Image.Image:
    """Draw where around a join the change is, a line a variant.

    Args:
        rows: Measurements, some with ``profile``.
        names: Variants to draw.

    Returns:
        The picture; values are geometric means over the renders that all of them have.
    """
    found: dict[str, dict[tuple[int, ...], list[float]]] = {name: {} for name in names}
    for row in rows:
        if row["variant"] in found and "profile" in row:
            key = row["num_steps"], row["clip"], row["seed"]
            found[row["variant"]][key] = row["profile"]
    shared = sorted(set.intersection(*(set(own) for own in found.values())))
    lines = {
        name: np.exp(np.log([own[key] for key in shared]).mean(axis=0))
        for name, own in found.items()
    }
    width, height = PANEL_PX
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    left, top, right, bottom = MARGINS_PX
    low = min(0.95, *(line.min() for line in lines.values())) - 0.01
    high = max(1.05, *(line.max() for line in lines.values())) + 0.03  # room for the names

    def place(offset: float, ratio: float) -> tuple[float, float]:
        across = (offset - PROFILE_OFFSETS[0]) / (len(PROFILE_OFFSETS) - 1)
        up = (ratio - low) / (high - low)
        y0 = height - bottom
        return left + across * (width - right - left), y0 + up * (top - y0)

    title = f"change into frames around the first that two windows share; {len(shared)} renders"
    draw.text((8, 10), title, fill=_INK, font=font)
    for ratio in np.arange(math.ceil(low * 50) / 50, high, 0.02):
        x0, y = place(PROFILE_OFFSETS[0], float(ratio))
        ends = [(x0, y), place(PROFILE_OFFSETS[-1], float(ratio))]
        draw.line(ends, fill=_INK if abs(ratio - 1) < 1e-6 else _GRID)
        draw.text((8, y - 6), f"{ratio:.2f}", fill=_INK, font=font)
    for offset in PROFILE_OFFSETS:
        draw.text((place(offset, low)[0] - 6, height - bottom + 8), f"{offset:+d}", fill=_INK)
    for row, (name, line) in enumerate(lines.items()):
        color = _LINES[row % len(_LINES)]
        spots = [place(*spot) for spot in zip(PROFILE_OFFSETS, line, strict=True)]
        draw.line(spots, fill=color, width=2)
        for x, y in spots:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=color)
        draw.text((width - right - 150, top + 12 * row), name, fill=color, font=font)
    return image


def strips(study: Study, points: Sequence[Point]) -> Image.Image:
    """Draw the worst seam of each point, a row each, its name above.

    Args:
        study: Renders.
        points: What to render.

    Returns:
        The picture; :func:`musev.quality.strips.seam_strip` says what a row shows.
    """
    from musev.quality.strips import seam_strip

    rows = []
    for point in points:
        frames_TYXC = study.render(point)[1:]
        strip_YXC = seam_strip(frames_TYXC, study.last_windows(point), max_seams=1)
        if strip_YXC is None:
            raise ValueError(f"{point.variant.name}: the clip has no border")
        row = Image.new("RGB", (strip_YXC.shape[1], strip_YXC.shape[0] + _LABEL_PX), "white")
        row.paste(Image.fromarray(strip_YXC), (0, _LABEL_PX))
        ImageDraw.Draw(row).text((4, 2), point.variant.name, fill=_INK)
        rows.append(np.asarray(row))
    return Image.fromarray(np.concatenate(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what was asked for.

    Args:
        arguments: Command line; None for the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=Path("out/windows.jsonl"))
    parser.add_argument("--chart", type=Path, help="picture of the measurements in --rows")
    parser.add_argument("--profiles", type=Path, help="picture of where around joins change is")
    parser.add_argument("--strips", type=Path, help="picture of seams; renders")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--clip", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--frames", type=int, default=97)
    names = [variant.name for variant in variants()]
    parser.add_argument("--variant", action="append", default=[], choices=names, metavar="NAME")
    given = parser.parse_args(arguments)
    if given.chart:
        chart(summarise(read_rows(given.rows))).save(given.chart)
    if given.profiles:
        profiles(read_rows(given.rows), given.variant).save(given.profiles)
    if given.strips:
        points = [
            Point(variant=variant, num_steps=given.steps, clip=given.clip, seed=given.seed)
            for variant in variants()
            if variant.name in given.variant
        ]
        with tempfile.TemporaryDirectory(prefix="musev-strips-") as scratch:
            study = Study(
                given.profile, num_frames=given.frames, guidance=1.0, scratch=Path(scratch)
            )
            strips(study, points).save(given.strips)


if __name__ == "__main__":
    main()
