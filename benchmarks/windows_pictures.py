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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from benchmarks.windows_study import PROFILE_OFFSETS, Point, Study
from benchmarks.windows_table import read_rows, summarise, variants

PANEL_IN = (5.4, 4.2)
DOTS_PER_INCH = 100
COLORS = {"musev": "#1f5da0", "upstream": "#c96318", "rotating": "#248448"}
_INK = (40, 40, 40)
_LABEL_PX = 16


def short_name(variant: str) -> str:
    """What a point is labelled: ``4`` for an overlap, ``s2`` for settling steps, ``4 linear``."""
    layout, _, rest = variant.partition(", ")
    if layout == "rotating":
        settling, _, blend = rest.partition(", ")
        return f"s{settling.split()[0]} {blend}".rstrip()
    overlap, _, blend = rest.removeprefix("overlap ").partition(", ")
    return overlap if blend == "flat" else f"{overlap} {blend}"


def chart(lines: Sequence[dict[str, Any]]) -> Figure:
    """Draw seam ratio against work, a panel for each number of steps.

    Args:
        lines: From :func:`benchmarks.windows_table.summarise`.

    Returns:
        The picture; whiskers are 95 percent intervals.
    """
    steps = sorted({line["num_steps"] for line in lines})
    known = [line for line in lines if math.isfinite(line["seam_ratio"][0])]
    figure = Figure((PANEL_IN[0] * len(steps), PANEL_IN[1]), DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(1, len(steps), sharex=True, sharey=True, squeeze=False)[0]
    for panel, num_steps in zip(panels, steps, strict=True):
        for layout, color in COLORS.items():
            own = [
                line
                for line in known
                if line["num_steps"] == num_steps and line["variant"].startswith(f"{layout}, ")
            ]
            if own:
                _whiskers(panel, own, layout, color)
        panel.axhline(1, color="0.3", linewidth=1)
        panel.grid(color="0.9")
        panel.set(title=f"{num_steps} steps", xlabel="work per frame", xmargin=0.2)
        panel.legend(loc="upper center")
    panels[0].set_ylabel("seam ratio (1: invisible)")
    return figure


def _whiskers(panel: Axes, lines: Sequence[dict[str, Any]], label: str, color: str) -> None:
    works = [line["work"] for line in lines]
    mean, low, high = np.array([line["seam_ratio"] for line in lines]).T
    panel.errorbar(
        works, mean, yerr=(mean - low, high - mean), fmt="o", markersize=5, color=color, label=label
    )
    for line, work, ratio in zip(lines, works, mean, strict=True):
        panel.annotate(
            short_name(line["variant"]),
            (work, ratio),
            xytext=(5, 3),
            textcoords="offset points",
            color=color,
            fontsize=8,
        )


def profiles(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
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
    figure = Figure((PANEL_IN[0] * 1.2, PANEL_IN[1]), DOTS_PER_INCH, layout="constrained")
    panel = figure.subplots()
    for name, own in found.items():
        means = np.exp(np.log([own[key] for key in shared]).mean(axis=0))
        panel.plot(PROFILE_OFFSETS, means, marker="o", label=name)
    panel.axhline(1, color="0.3", linewidth=1)
    panel.grid(color="0.9")
    panel.set(
        title=f"change into frames around a join, over {len(shared)} renders",
        xlabel="frames after the first that two windows share",
        ylabel="change over the usual change",
    )
    panel.legend()
    return figure


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
        chart(summarise(read_rows(given.rows))).savefig(given.chart)
    if given.profiles:
        profiles(read_rows(given.rows), given.variant).savefig(given.profiles)
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
