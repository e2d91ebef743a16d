"""What a run did, for people: contact sheet, report.html and run.json beside the results.

Everything here is made from the rows of the results table, after the run. A video that cannot be
shown gets a card that says so; the report never decides how a run ended.
"""

from __future__ import annotations

import base64
import html
import importlib.metadata
import io
import json
import logging
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from musev.errors import MusevError
from musev.media import read_video
from pipelines.contact_sheet import MAX_CARDS, Card, describe, draw_contact_sheet, pick_frames
from pipelines.ledger import Ledger, Record

logger = logging.getLogger(__name__)

CONTACT_SHEET, REPORT, RUN = "contact_sheet.png", "report.html", "run.json"
MAX_TABLE_ROWS = 1000
PREVIEW_FRAMES = 1000
"""Previews of longer videos show this much of their beginning; the rest is not decoded for them."""
PREVIEW_BYTES = 512 * 2**20

_PACKAGES = ("musev", "torch", "ray", "diffusers", "transformers", "pyarrow", "imageio-ffmpeg")
_STATUSES = ("committed", "failed", "quarantined")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts and sums over the rows of a results table."""

    num_rows: int
    num_committed: int
    num_failed: int
    num_quarantined: int
    num_frames: int
    """Frames of the committed videos."""
    video_s: float
    """Playing time of the committed videos."""
    gpu_seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, dict[str, int]] = field(default_factory=dict)
    """Kind of condition to how many were ``computed`` and ``reused``, also for failed rows."""
    errors: dict[str, int] = field(default_factory=dict)
    """Error class to number of rows, most frequent first."""


def summarize(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """Count and add up the rows of a results table.

    Two requests that share one video both count as rows; its frames and seconds count once.

    Args:
        rows: Rows as :meth:`Ledger.write_results` returns them.

    Returns:
        The sums.
    """
    statuses = Counter(row["status"] for row in rows)
    videos = {row["sample_id"]: row for row in rows if row["status"] == "committed"}
    stages: Counter[str] = Counter()
    for row in videos.values():
        stages.update(dict(row.get("stage_seconds") or {}))
    errors = Counter(row.get("error_class") or "unknown" for row in rows if _failed(row))
    return Summary(
        num_rows=len(rows),
        num_committed=statuses["committed"],
        num_failed=statuses["failed"],
        num_quarantined=statuses["quarantined"],
        num_frames=sum(row.get("num_frames") or 0 for row in videos.values()),
        video_s=round(sum(row.get("duration_s") or 0.0 for row in videos.values()), 3),
        gpu_seconds=round(sum(row.get("gpu_seconds") or 0.0 for row in videos.values()), 3),
        stage_seconds={name: round(seconds, 3) for name, seconds in sorted(stages.items())},
        conditions=count_conditions(rows),
        errors=dict(errors.most_common()),
    )


def count_conditions(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Add up what rows were conditioned on: a portrait that is shared is computed once.

    Args:
        rows: Rows of a results table, or some of them; a sample counts once.

    Returns:
        Kind of condition to how many were ``computed`` and ``reused``, by every worker.
    """
    total: dict[str, Counter[str]] = {}
    for row in {row["sample_id"]: row for row in rows if row.get("conditions")}.values():
        for kind, uses in row["conditions"].items():
            total.setdefault(kind, Counter(computed=0, reused=0)).update(uses)
    return {kind: dict(uses) for kind, uses in sorted(total.items())}


def conditions_line(conditions: Mapping[str, Mapping[str, int]]) -> str:
    """Say in one line what :func:`count_conditions` has found."""
    computed, reused = (
        sum(uses[how] for uses in conditions.values()) for how in ("computed", "reused")
    )
    return f"{computed} computed, {reused} reused"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a video; none of them is imported."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_report(
    ledger: Ledger,
    rows: Sequence[Record],
    *,
    settings: Mapping[str, Any],
    wall_s: float,
    title: str = "MuseV on Ray",
) -> Summary:
    """Write contact sheet, report page and ``run.json`` below the output URL.

    Args:
        ledger: The run's ledger.
        rows: What :meth:`Ledger.write_results` returned.
        settings: Plain values that describe the run (profile, flags); no credentials.
        wall_s: Seconds the run took.
        title: Heading of sheet and page.

    Returns:
        The sums that the report shows.
    """
    summary = summarize(rows)
    run = {
        "run_id": ledger.run_id,
        "output": ledger.out_uri,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": round(wall_s, 3),
        "frames_per_s": round(summary.num_frames / wall_s, 3) if wall_s > 0 else None,
        **asdict(summary),
        "versions": versions(),
        "settings": dict(settings),
    }
    heading = f"{title}  ·  {counts_line(summary)}"
    cards = [make_card(ledger, row) for row in rows[:MAX_CARDS]]
    where = f"{ledger.out_uri}   {run['finished_at']}"
    if len(rows) > MAX_CARDS:
        where = f"first {MAX_CARDS} of {len(rows)} requests   {where}"
    sheet = draw_contact_sheet(heading, where, cards)
    ledger.store.put(CONTACT_SHEET, _encode(sheet, "PNG", optimize=True))
    page = render_html(title, summary, run, rows, _encode(sheet, "JPEG", quality=88))
    ledger.store.put(REPORT, page.encode())
    ledger.store.put(RUN, json.dumps(run, ensure_ascii=False, indent=2, default=str).encode())
    return summary


def counts_line(summary: Summary) -> str:
    """Say in one line how the rows ended; kinds that did not occur are left out."""
    parts = [f"{summary.num_committed} of {summary.num_rows} committed"]
    if summary.num_failed:
        parts.append(f"{summary.num_failed} failed")
    if summary.num_quarantined:
        parts.append(f"{summary.num_quarantined} quarantined")
    return ", ".join(parts)


def make_card(ledger: Ledger, row: Mapping[str, Any]) -> Card:
    """Collect what the contact sheet shows of one row; reads its video if it has one.

    Args:
        ledger: Where the video lies.
        row: One row of the results.

    Returns:
        The card; with a reason in place of frames if they cannot be read.
    """
    frames: list[tuple[int, np.ndarray]] = []
    reason = str(row.get("error_message") or "No reason was recorded.")
    if row["status"] == "committed":
        try:
            frames = read_preview(ledger, row)
        except (MusevError, OSError) as error:
            logger.warning("no preview of %s: %s", row["request_id"], error)
            reason = f"The video could not be read back: {error}"
    request = row.get("request") or {}
    return Card(
        name=str(row["request_id"]),
        prompt=str(row.get("prompt") or request.get("prompt") or ""),
        facts=describe(_known(row)),
        status=str(row["status"]),
        source="  ·  ".join(
            str(row[name]) for name in ("error_stage", "error_class") if row.get(name)
        ),
        reason=reason,
        frames=frames,
    )


def read_preview(ledger: Ledger, row: Mapping[str, Any]) -> list[tuple[int, np.ndarray]]:
    """Read a few frames of a committed video back from storage.

    Args:
        ledger: Where it lies.
        row: Its row: ``video``, ``num_frames`` and ``bytes``.

    Returns:
        Frame numbers with their ``image_YXC`` uint8.

    Raises:
        MusevError: If the video is too large to fetch for a preview, or holds no frames.
    """
    if row["bytes"] > PREVIEW_BYTES:
        raise MusevError(f"{row['bytes'] / 2**20:.0f} MiB is too much to fetch for a preview")
    wanted = pick_frames(min(row.get("num_frames") or 1, PREVIEW_FRAMES))
    with tempfile.TemporaryDirectory(prefix="musev-preview-") as folder:
        path = Path(folder) / "video.mp4"
        ledger.store.fetch(row["video"], path)
        found = []
        for number, frame in enumerate(read_video(path)):
            if number in wanted:
                found.append((number, frame))
            if number >= wanted[-1]:
                break
    if not found:
        raise MusevError("the video holds no frames")
    return found


def render_html(
    title: str,
    summary: Summary,
    run: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    sheet_jpeg: bytes,
) -> str:
    """Build the report page: one file without outside references, but for links to the videos.

    Args:
        title: Heading.
        summary: Counts and sums.
        run: What ``run.json`` holds.
        rows: Rows of the results; failures are listed first, at most :data:`MAX_TABLE_ROWS`.
        sheet_jpeg: Contact sheet, embedded.

    Returns:
        HTML text.
    """
    listed = sorted(rows, key=lambda row: not _failed(row))[:MAX_TABLE_ROWS]
    left_out = len(rows) - len(listed)
    wall_s = float(run["wall_s"])
    tiles = [
        ("requests", f"{summary.num_rows}"),
        ("committed", f"{summary.num_committed}"),
        ("failed", f"{summary.num_failed}"),
        ("quarantined", f"{summary.num_quarantined}"),
        ("frames", f"{summary.num_frames}"),
        ("video", f"{summary.video_s:.1f} s"),
        ("run", f"{wall_s:.1f} s"),
        ("frames a second", f"{summary.num_frames / wall_s:.2f}" if wall_s > 0 else "–"),
    ]
    more = f"<p class=soft>{left_out} more in results.parquet.</p>" if left_out else ""
    return _PAGE.format(
        title=html.escape(title),
        output=html.escape(str(run["output"])),
        finished=html.escape(str(run["finished_at"])),
        tiles="".join(f"<div><b>{value}</b>{html.escape(name)}</div>" for name, value in tiles),
        sheet=base64.b64encode(sheet_jpeg).decode(),
        rows="\n".join(map(_table_row, listed)),
        more=more,
        stages=_pairs({name: f"{value:.1f} s" for name, value in summary.stage_seconds.items()}),
        conditions=_pairs(
            {
                kind: f"{uses['computed']} computed, {uses['reused']} reused"
                for kind, uses in summary.conditions.items()
            }
        ),
        errors=_pairs(summary.errors),
        versions=_pairs(run["versions"]),
        settings=html.escape(
            json.dumps(run["settings"], ensure_ascii=False, indent=2, default=str)
        ),
    )


def _table_row(row: Mapping[str, Any]) -> str:
    status = row["status"] if row["status"] in _STATUSES else "failed"
    name = html.escape(str(row["request_id"]))
    request = row.get("request") or {}
    if row.get("video"):
        name = f'<a href="{html.escape(quote(str(row["video"])))}">{name}</a>'
    seconds = sum(dict(row.get("stage_seconds") or {}).values())
    words = row.get("error_message") if _failed(row) else row.get("prompt") or request.get("prompt")
    kind = f"<b>{html.escape(str(row.get('error_class') or ''))}</b> " if _failed(row) else ""
    return (
        f"<tr class={status}><td>{name}</td><td><span>{status}</span></td>"
        f"<td>{kind}{html.escape(str(words or ''))}</td>"
        f"<td>{html.escape(describe(_known(row)))}</td>"
        f"<td class=number>{f'{seconds:.1f} s' if seconds else ''}</td>"
        f"<td class=number>{html.escape(str(row.get('attempts') or ''))}</td></tr>"
    )


def _pairs(values: Mapping[str, Any]) -> str:
    rows = (
        f"<tr><td>{html.escape(str(name))}</td><td class=number>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return "".join(rows) or "<tr><td class=soft>none</td></tr>"


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, overlaid with what was measured."""
    measured = {name: value for name, value in row.items() if value is not None}
    return {**(row.get("request") or {}), **measured}


def _failed(row: Mapping[str, Any]) -> bool:
    return row["status"] != "committed"


def _encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1d1d1b; background: #f3f2ef;
  max-width: 1280px; margin: 2rem auto; padding: 0 1.5rem; }}
h1 {{ font-size: 1.6rem; margin: 0; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
.soft {{ color: #6d6b66; overflow-wrap: anywhere; }}
.tiles {{ display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }}
.tiles div {{ background: #fff; border: 1px solid #dcdad4; border-radius: 10px;
  padding: .6rem 1rem; color: #6d6b66; font-size: .85rem; }}
.tiles b {{ display: block; font-size: 1.3rem; color: #1d1d1b; }}
img {{ width: 100%; height: auto; border-radius: 10px; border: 1px solid #dcdad4; }}
table {{ border-collapse: collapse; width: 100%; background: #fff; border-radius: 10px;
  overflow: hidden; font-size: .9rem; }}
th, td {{ text-align: left; padding: .45rem .75rem; border-top: 1px solid #eceae5;
  vertical-align: top; overflow-wrap: anywhere; }}
th {{ border: 0; color: #6d6b66; font-weight: 500; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
tr span {{ border-radius: 99px; padding: .1rem .6rem; font-size: .8rem; background: #e3f1e5;
  color: #1f6b2d; white-space: nowrap; }}
tr.failed span {{ background: #fdecea; color: #b3261e; }}
tr.quarantined span {{ background: #fdf1dc; color: #9a5b00; }}
.side {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 1.5rem; }}
pre {{ background: #fff; border: 1px solid #dcdad4; border-radius: 10px; padding: 1rem;
  overflow: auto; font-size: .85rem; }}
</style></head><body>
<h1>{title}</h1>
<p class=soft>{output}<br>finished {finished}</p>
<div class=tiles>{tiles}</div>
<img alt="Frames of each request" src="data:image/jpeg;base64,{sheet}">
<h2>Requests</h2>
<table><tr><th>request</th><th>status</th><th>prompt or reason</th><th>video</th><th>time</th>
<th>attempts</th></tr>
{rows}
</table>{more}
<div class=side>
<section><h2>Seconds by stage</h2><table>{stages}</table></section>
<section><h2>Conditions</h2><table>{conditions}</table></section>
<section><h2>Failures by class</h2><table>{errors}</table></section>
<section><h2>Versions</h2><table>{versions}</table></section>
</div>
<h2>Settings</h2><pre>{settings}</pre>
</body></html>
"""
