"""What the windows study compares, and the table of its measurements."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musev.quality.estimate import bootstrap_interval

SCORES = ("seam_ratio", "pck_0.1", "psnr")
BASELINE = "musev, overlap 4, flat"
"""What the others are compared with: the original's overlap and blend."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to lay windows over a clip."""

    layout: str
    overlap: int = 4
    blend: str = "flat"
    settle_steps: int = 0

    @property
    def name(self) -> str:
        """As the table calls it."""
        if self.layout == "rotating":
            blended = "" if self.blend == "flat" else f", {self.blend}"
            return f"rotating, {self.settle_steps} settling{blended}"
        return f"{self.layout}, overlap {self.overlap}, {self.blend}"


def variants() -> list[Variant]:
    """The layouts, overlaps and blends that are compared."""
    fixed = [
        Variant(layout=layout, overlap=overlap)
        for layout, overlap in itertools.product(("musev", "upstream"), (0, 2, 4, 6))
    ]
    blended = [
        Variant(layout="musev", overlap=overlap, blend=blend)
        for overlap, blend in itertools.product((4, 6), ("linear", "pyramid", "gaussian"))
    ]
    rotating = [Variant(layout="rotating", settle_steps=steps) for steps in range(5)]
    both = [Variant(layout="rotating", settle_steps=steps, blend="linear") for steps in range(1, 5)]
    return fixed + blended + rotating + both


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the measurements there are; a line that was cut off by a kill is left out."""
    rows = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bring measurements together by steps and variant, in the order of :func:`variants`.

    Args:
        rows: Measurements.

    Returns:
        A line a group: ``num_steps``, ``variant``, ``work``, ``clips``, ``renders``, and
        ``(mean, low, high)`` of each score, and of its difference from :data:`BASELINE`
        (``seam_ratio_difference`` and so on) over the clips and seeds that both were measured on:
        clips differ more than layouts do.
    """
    lines = []
    for num_steps in sorted({row["num_steps"] for row in rows}):
        runs: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
        for row in rows:
            if row["num_steps"] == num_steps:
                runs.setdefault(row["variant"], {})[row["clip"], row["seed"]] = row
        base = runs.get(BASELINE, {})
        lines += [
            {"num_steps": num_steps, "variant": v.name, **_line(runs[v.name], base)}
            for v in variants()
            if v.name in runs
        ]
    return lines


def _line(
    own: dict[tuple[int, int], dict[str, Any]], base: dict[tuple[int, int], dict[str, Any]]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "clips": len({clip for clip, _ in own}),
        "renders": len(own),
        "work": next(iter(own.values()))["work"],
    }
    for score in SCORES:
        found[score] = _over_clips({run: row[score] for run, row in own.items()})
        found[f"{score}_difference"] = _over_clips(
            {run: row[score] - base[run][score] for run, row in own.items() if run in base}
        )
    return found


def _over_clips(values: dict[tuple[int, int], float]) -> tuple[float, ...]:
    """``(mean, low, high)`` over clips, not seeds; what no judge could say is left out."""
    by_clip: dict[int, list[float]] = {}
    for (clip, _), value in values.items():
        if math.isfinite(value):
            by_clip.setdefault(clip, []).append(value)
    if not by_clip:
        return (math.nan,) * 3
    means = [float(np.mean(own)) for own in by_clip.values()]
    return float(np.mean(means)), *bootstrap_interval(means)


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """Write the summary as a Markdown table; intervals are 95 percent."""
    text = [
        "| steps | windows | work | seam ratio | against overlap 4 | PCK@0.1 | against overlap 4 "
        "| PSNR, dB | against overlap 4 | renders |",
        "|" + "---|" * 10,
    ]
    for line in lines:
        cells = [f"{line['num_steps']}", line["variant"], f"{line['work']:.2f}"]
        for score, digits in (("seam_ratio", 3), ("pck_0.1", 3), ("psnr", 2)):
            mean, low, high = line[score]
            cells.append(f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
            mean, low, high = line[f"{score}_difference"]
            same = line["variant"] == BASELINE or not math.isfinite(mean)
            told = f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
            cells.append("" if same else told)
        text.append(f"| {' | '.join(cells)} | {line['renders']} |")
    return "\n".join(text) + "\n"
