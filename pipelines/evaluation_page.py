"""The page of an evaluation: what the judges say of a run, worst rows first, with pictures.

One file without outside references, but for links to the videos.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from musev.quality.estimate import Estimate, estimate
from pipelines.ledger import Record
from pipelines.scores import PICTURES, Scored, picture_path
from pipelines.storage import Store

PAGE = "evaluation.html"
MAX_ROWS = 120
"""Rows with pictures; the results table has all."""
_WIDTH, _HEIGHT, _EDGE = 420, 90, 4


@dataclass(frozen=True)
class Judge:
    """How a score is told to people."""

    words: str
    """What it means, with its range."""
    low: float = -math.inf
    """Below it a row is marked."""
    high: float = math.inf
    """Above it a row is marked."""


JUDGES: dict[str, Judge] = {
    "scene_accuracy": Judge("scene as asked for, 1 or 0", low=1),
    "shirt_color_accuracy": Judge("shirt colour as asked for, 1 or 0", low=1),
    "trousers_color_accuracy": Judge("trousers colour as asked for, 1 or 0", low=1),
    "action_accuracy": Judge("action as asked for, 1 or 0", low=1),
    "skin_accuracy": Judge("skin as asked for, 1 or 0", low=1),
    "hair_color_accuracy": Judge("hair as asked for, 1 or 0", low=1),
    "pck_0.1": Judge("joints within a tenth of the body's height, 0 to 1", low=0.85),
    "identity": Judge("skin, hair and clothes of the reference kept, 0 to 1", low=0.75),
    "first_frame_psnr": Judge("first frame against the condition image, dB", low=18),
    "seam_ratio": Judge("change across window borders over elsewhere, 1 invisible", high=1.4),
    "drift_slope": Judge("colours, Lab units in 100 frames, 0 none", high=5),
    "subject_drift_slope": Judge("the person's colours, Lab units in 100 frames", high=8),
    "sharpness_slope": Judge("log sharpness in 100 frames, -0.7 halves it", low=-1, high=1),
    "flicker": Judge("VBench's temporal flickering, 1 is still"),
    "background_flicker": Judge("shimmer of the calm quarter, grey levels", high=6),
    "sharpness": Judge("variance of the Laplacian"),
    "motion": Judge("liveliest twentieth, picture heights a frame"),
    "camera_motion": Judge("whole picture, picture heights a frame", high=0.02),
    "frozen_share": Judge("pairs of frames that do not move, 0 to 1", high=0.5),
    "black_share": Judge("black frames, 0 to 1", high=0),
    "num_cuts": Judge("cuts", high=0),
    "disorder": Judge("change over one frame to that over two, below 0.85 smooth", high=1),
    "loop_distance": Judge("nearest repetition, below 0.1 a loop", low=0.1),
    "static_overlay": Judge("writing that stays, thousandths of the picture", high=1),
}
"""Judges in the order in which they are shown, with the limits beyond which a row is marked."""


def marks_of(scored: Scored) -> list[str]:
    """Names of the scores of a row that lie beyond their judge's limits."""
    return [
        name
        for name, value in scored.scores.items()
        if name in JUDGES and not JUDGES[name].low <= value <= JUDGES[name].high
    ]


def sort_rows(scores: Mapping[str, Scored]) -> list[str]:
    """Order sample ids: those that could not be judged, then by number of marks, most first."""

    def worst_first(name: str) -> tuple[float, float, str]:
        scored = scores[name]
        marks = math.inf if "video" in scored.reasons else len(marks_of(scored))
        return -marks, -scored.scores.get("seam_ratio", 0.0), name

    return sorted(scores, key=worst_first)


def render_page(
    store: Store, commits: Mapping[str, Record], scores: Mapping[str, Scored], *, title: str
) -> str:
    """Build the page.

    Args:
        store: Where the pictures of the rows lie.
        commits: Commit records by sample id.
        scores: What the judges said, by sample id of ``commits``.
        title: Heading.

    Returns:
        HTML text.
    """
    listed = sort_rows(scores)[:MAX_ROWS]
    paths = [picture_path(name, kind) for name in listed for kind in PICTURES]
    there = set(store.list("metrics"))
    pictures = store.read_many([path for path in paths if path in there])
    left_out = len(scores) - len(listed)
    return _PAGE.format(
        title=html.escape(title),
        output=html.escape(store.uri),
        counts=f"{len(scores)} of {len(commits)} videos judged",
        summary=_summary(scores),
        rows="\n".join(_row(name, commits[name], scores[name], pictures) for name in listed),
        more=f"<p class=soft>{left_out} more in the results table.</p>" if left_out else "",
    )


def _summary(scores: Mapping[str, Scored]) -> str:
    kinds = sorted({scored.kind for scored in scores.values()})
    head = "".join(f"<th>{html.escape(kind or 'all')}</th>" for kind in kinds)
    lines = []
    for name, judge in JUDGES.items():
        cells = [
            estimate(s.scores[name] for s in scores.values() if s.kind == kind and name in s.scores)
            for kind in kinds
        ]
        if any(cells):
            told = "".join(f"<td class=number>{_told(cell)}</td>" for cell in cells)
            lines.append(f"<tr><td>{name}</td>{told}<td class=soft>{judge.words}</td></tr>")
    return f"<tr><th>judge</th>{head}<th>meaning</th></tr>{''.join(lines)}"


def _told(found: Estimate | None) -> str:
    if found is None:
        return "–"
    if not math.isfinite(found.low):
        return f"{found.value:.3g}"
    between = f"{found.low:.3g} to {found.high:.3g}, n {found.n}"
    return f"<b>{found.value:.3g}</b> <span class=soft>{between}</span>"


def _row(name: str, record: Record, scored: Scored, pictures: Mapping[str, bytes]) -> str:
    request = record["request"]
    request = json.loads(request) if isinstance(request, str) else request
    link = html.escape(quote(str(record["video"])))
    marks = set(marks_of(scored))
    values = "".join(
        f"<li class={'mark' if n in marks else 'fine'}>{n} {scored.scores[n]:.3g}</li>"
        for n in JUDGES
        if n in scored.scores
    )
    reasons = "".join(
        f"<li class=soft>{html.escape(n)}: {html.escape(why)}</li>"
        for n, why in scored.reasons.items()
    )
    shown = "".join(
        f'<img alt="{kind} of {html.escape(str(request["request_id"]))}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(pictures[path]).decode()}">'
        for kind in PICTURES
        if (path := picture_path(name, kind)) in pictures
    )
    kind = f"{html.escape(scored.kind)} · " if scored.kind else ""
    return (
        f'<section><h2><a href="{link}">{html.escape(str(request["request_id"]))}</a></h2>'
        f"<p>{kind}{html.escape(str(request.get('prompt', '')))}</p>"
        f"<ul>{values}</ul><ul>{reasons}</ul>{shown}{_charts(scored.curves)}</section>"
    )


def _charts(curves: Mapping[str, Sequence[float | None]]) -> str:
    charts = []
    for name, words in (
        ("color_drift", "colours, distance from the beginning, Lab units"),
        ("subject_drift", "the person's colours, distance from the beginning, Lab units"),
        ("seam_curve", "change into a frame over the usual; red: window borders"),
    ):
        if len(curves.get(name, ())) > 1:
            marks = curves.get("borders", ()) if name == "seam_curve" else ()
            floor = 2.0 if name == "seam_curve" else 10.0
            charts.append(
                f"<figure>{draw_chart(curves[name], marks=marks, least_top=floor)}"
                f"<figcaption class=soft>{words}</figcaption></figure>"
            )
    return f"<div class=charts>{''.join(charts)}</div>" if charts else ""


def draw_chart(
    curve: Sequence[float | None], *, marks: Sequence[Any] = (), least_top: float = 0.0
) -> str:
    """Draw a curve as SVG, from 0 up; gaps where it has no values.

    Args:
        curve: Values, the same distance apart.
        marks: Places (from 1) that get an upright line.
        least_top: The axis reaches at least so far.

    Returns:
        An ``svg`` element.
    """
    top = max([least_top, *(value for value in curve if value is not None)]) or 1.0

    def x(place: float) -> float:
        return _EDGE + (_WIDTH - 2 * _EDGE) * place / max(len(curve) - 1, 1)

    def y(value: float) -> float:
        return _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * max(value, 0.0) / top

    pieces: list[list[str]] = [[]]
    for place, value in enumerate(curve):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{x(place):.1f},{y(value):.1f}")
    lines = "".join(f'<polyline points="{" ".join(piece)}"/>' for piece in pieces if piece)
    upright = "".join(
        f'<line class=border x1="{x(mark - 1):.1f}" x2="{x(mark - 1):.1f}" y1="0" y2="{_HEIGHT}"/>'
        for mark in marks
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">{upright}'
        f'{lines}<text x="{_EDGE}" y="12">{top:.3g}</text></svg>'
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1d1d1b; background: #f3f2ef;
  max-width: 1280px; margin: 2rem auto; padding: 0 1.5rem; }}
h1 {{ font-size: 1.6rem; margin: 0; }} h2 {{ font-size: 1.05rem; margin: 0; }}
.soft {{ color: #6d6b66; overflow-wrap: anywhere; }} p {{ margin: .25rem 0; }}
table {{ border-collapse: collapse; width: 100%; background: #fff; border-radius: 10px;
  font-size: .9rem; margin: 1rem 0 2rem; }}
th, td {{ text-align: left; padding: .35rem .75rem; border-top: 1px solid #eceae5; }}
th {{ border: 0; color: #6d6b66; font-weight: 500; }}
td.number {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
td.number .soft {{ display: block; }}
td.soft {{ overflow-wrap: normal; min-width: 11rem; }}
section {{ background: #fff; border: 1px solid #dcdad4; border-radius: 10px; padding: 1rem;
  margin: 1rem 0; }}
section img {{ display: block; max-width: 100%; margin: .5rem 0; border-radius: 4px; }}
ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: .3rem; padding: 0; margin: .4rem 0;
  font-size: .8rem; }}
li.fine, li.mark {{ border-radius: 99px; padding: .1rem .6rem; background: #efeeea; }}
li.mark {{ background: #fdecea; color: #b3261e; }}
.charts {{ display: flex; flex-wrap: wrap; gap: 1rem; }} figure {{ margin: 0; }}
figcaption {{ font-size: .8rem; }}
svg {{ background: #f8f7f4; border-radius: 6px; }} svg text {{ font-size: 11px; fill: #6d6b66; }}
polyline {{ fill: none; stroke: #2b5fa8; stroke-width: 1.5; }}
line.border {{ stroke: #d83c32; stroke-width: 1; opacity: .5; }}
</style></head><body>
<h1>{title}</h1>
<p class=soft>{output}<br>{counts}</p>
<table>{summary}</table>
{rows}
{more}
</body></html>
"""
