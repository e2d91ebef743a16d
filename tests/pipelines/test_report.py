from __future__ import annotations

import html.parser
import io
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from musev.media import write_segment
from pipelines import report
from pipelines.ledger import Ledger, video_path
from pipelines.report import (
    MAX_TABLE_ROWS,
    conditions_line,
    count_conditions,
    counts_line,
    make_card,
    read_preview,
    render_html,
    summarize,
    versions,
    write_report,
)

NUM_FRAMES = 13
FAILED = {
    "request_id": "bad",
    "sample_id": None,
    "status": "failed",
    "error_class": "MediaError",
    "error_stage": "load_inputs",
    "error_message": "no <picture> at a&b",
}
RUN = {
    "output": "s3://bucket/out",
    "finished_at": "now",
    "wall_s": 2.0,
    "versions": {},
    "settings": {},
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen grey frames, each a little brighter than the one before."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    frames = (np.full((32, 32, 3), 20 + 15 * t, dtype=np.uint8) for t in range(NUM_FRAMES))
    write_segment(path, frames, fps=8.0)
    return path


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(f"memory://{uuid.uuid4().hex}/out")


def commit(ledger: Ledger, name: str, video: Path, **changes: Any) -> None:
    record = {
        "prompt": "a person",
        "width": 32,
        "height": 32,
        "num_frames": NUM_FRAMES,
        "fps": 8.0,
        "duration_s": NUM_FRAMES / 8,
        "gpu_seconds": 1.0,
        "stage_seconds": {"denoise": 2.0, "decode": 0.5},
        "attempts": 1,
        **changes,
    }
    ledger.commit(name, ledger.begin_attempt(name).id, video, record)


def make_rows(ledger: Ledger, video: Path) -> list[dict[str, Any]]:
    commit(ledger, "aa" * 32, video)
    commit(ledger, "bb" * 32, video, prompt="<script>alert('é')</script>")
    requests = [("one", "aa" * 32, {}), ("twin", "aa" * 32, {}), ("two", "bb" * 32, {})]
    return ledger.write_results(requests, [FAILED])


class _Page(html.parser.HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.links += [found["href"] or ""] if "href" in found else []
        self.sources += [found["src"] or ""] if "src" in found else []

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_sums_count_shared_videos_once(ledger: Ledger, video: Path) -> None:
    summary = summarize(make_rows(ledger, video))
    assert (summary.num_rows, summary.num_committed, summary.num_failed) == (4, 3, 1)
    assert summary.num_frames == 2 * NUM_FRAMES
    assert summary.video_s == pytest.approx(2 * NUM_FRAMES / 8)
    assert summary.gpu_seconds == 2.0
    assert summary.stage_seconds == {"decode": 1.0, "denoise": 4.0}
    assert summary.errors == {"MediaError": 1}
    assert counts_line(summary) == "3 of 4 committed, 1 failed"


def test_conditions_of_a_shared_video_count_once_and_those_of_failed_rows_too() -> None:
    def row(sample: str, **conditions: tuple[int, int]) -> dict[str, Any]:
        uses = {kind: {"computed": a, "reused": b} for kind, (a, b) in conditions.items()}
        return {**FAILED, "sample_id": sample, "conditions": uses}

    rows = [row("a", text=(1, 0), reference=(1, 2)), row("a", text=(1, 0), reference=(1, 2))]
    rows += [row("b", text=(0, 4)), row("c"), FAILED]
    found = count_conditions(rows)
    assert found == {
        "reference": {"computed": 1, "reused": 2},
        "text": {"computed": 1, "reused": 4},
    }
    assert conditions_line(found) == "2 computed, 6 reused"
    assert summarize(rows).conditions == found
    assert conditions_line(count_conditions([FAILED])) == "0 computed, 0 reused"


def test_quarantined_rows_are_counted_by_themselves() -> None:
    summary = summarize([{**FAILED, "status": "quarantined"}, FAILED])
    assert counts_line(summary) == "0 of 2 committed, 1 failed, 1 quarantined"
    assert counts_line(summarize([])) == "0 of 0 committed"


def test_a_preview_shows_the_right_frames(ledger: Ledger, video: Path) -> None:
    row = make_rows(ledger, video)[0]
    frames = read_preview(ledger, row)
    assert [number for number, _ in frames] == [0, 4, 8, 12]
    for number, image_YXC in frames:
        assert image_YXC.mean() == pytest.approx(20 + 15 * number, abs=3)


def test_a_long_video_is_previewed_from_its_beginning(
    ledger: Ledger, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PREVIEW_FRAMES", 7)
    frames = read_preview(ledger, make_rows(ledger, video)[0])
    assert [number for number, _ in frames] == [0, 2, 4, 6]


@pytest.mark.parametrize("damage", ["missing", "truncated", "too large"])
def test_a_video_that_cannot_be_shown_says_why(ledger: Ledger, video: Path, damage: str) -> None:
    row = make_rows(ledger, video)[0]
    if damage == "missing":
        ledger.store.delete([video_path("aa" * 32)])
    elif damage == "truncated":
        ledger.store.put(video_path("aa" * 32), video.read_bytes()[:200])
    else:
        row = {**row, "bytes": 2**40}
    card = make_card(ledger, row)
    assert card.frames == []
    assert "could not be read back" in card.reason
    assert card.status == "committed"


def test_report_files_lie_beside_the_results(ledger: Ledger, video: Path) -> None:
    rows = make_rows(ledger, video)
    summary = write_report(ledger, rows, settings={"profile": "mini"}, wall_s=4.0)
    assert summary == summarize(rows)
    sheet = Image.open(io.BytesIO(ledger.store.read("contact_sheet.png")))
    assert sheet.format == "PNG"
    run = json.loads(ledger.store.read("run.json"))
    assert run["run_id"] == ledger.run_id
    assert (run["num_rows"], run["num_committed"], run["num_failed"]) == (4, 3, 1)
    assert run["frames_per_s"] == pytest.approx(2 * NUM_FRAMES / 4)
    assert run["settings"] == {"profile": "mini"}
    assert {"python", "torch", "ray"} <= set(run["versions"])
    page = _Page(ledger.store.read("report.html").decode())
    assert page.links == [video_path("aa" * 32), video_path("aa" * 32), video_path("bb" * 32)]
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(page.sources) == 1


def test_text_from_a_manifest_cannot_become_markup(ledger: Ledger, video: Path) -> None:
    rows = [
        {**row, "request_id": f"<i>{row['request_id']}</i>", "error_class": "<u>x</u>"}
        for row in make_rows(ledger, video)
    ]
    run = {**RUN, "settings": {"</pre><script>": "<script>"}, "output": "s3://b/<img>"}
    page = _Page(render_html("<h3>t</h3>", summarize(rows), run, rows, b""))
    assert not {"script", "i", "u", "h3"} & set(page.tags)
    assert page.tags.count("img") == 1
    assert "<script>alert('é')</script>" in page.text
    assert "no <picture> at a&b" in page.text


def test_failures_come_first_and_long_tables_are_cut() -> None:
    rows = [{"request_id": str(n), "sample_id": str(n), "status": "committed"} for n in range(1500)]
    text = render_html("t", summarize([*rows, FAILED]), RUN, [*rows, FAILED], b"")
    assert _Page(text).tags.count("tr") < MAX_TABLE_ROWS + 20
    assert "501 more in results.parquet" in text
    assert text.index("MediaError") < text.index("class=committed")


def test_an_empty_run_has_a_report(ledger: Ledger) -> None:
    summary = write_report(ledger, [], settings={}, wall_s=0.0)
    assert summary.num_rows == 0
    assert b"<html" in ledger.store.read("report.html")


def test_versions_are_read_without_importing_anything() -> None:
    found = versions()
    assert found["python"].startswith("3.")
    assert all(isinstance(value, str) for value in found.values())
