"""The page: worst rows first, one file, nothing of a prompt becomes markup."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from musev.quality.clip import ALWAYS
from pipelines.evaluation_page import JUDGES, draw_chart, marks_of, render_page, sort_rows
from pipelines.held_out import REPORTED
from pipelines.scores import Scored, write_scores
from pipelines.storage import Store

FINE = Scored(sha256="", version=1, scores={"seam_ratio": 1.0, "num_cuts": 0.0}, kind="long")
POOR = Scored(sha256="", version=1, scores={"seam_ratio": 2.5, "num_cuts": 3.0}, kind="long")
LOST = Scored(sha256="", version=1, scores={}, reasons={"video": "MediaError: no file"})


def commit(name: str, prompt: str = "a person") -> dict[str, object]:
    return {"video": f"videos/{name}.mp4", "request": {"request_id": name, "prompt": prompt}}


def test_every_judge_is_explained() -> None:
    """No score that is computed or reported goes without words."""
    assert set(ALWAYS) <= set(JUDGES)
    assert {score for score, _ in REPORTED.values()} <= set(JUDGES)


def test_rows_are_marked_beyond_limits_and_the_worst_come_first() -> None:
    assert marks_of(FINE) == []
    assert marks_of(POOR) == ["seam_ratio", "num_cuts"]
    assert sort_rows({"a": FINE, "b": POOR, "c": LOST}) == ["c", "b", "a"]


def test_the_page_shows_pictures_scores_reasons_and_no_markup_of_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scores = {"a": FINE, "b": POOR, "c": LOST}
    commits = {name: commit(name) for name in scores}
    commits["b"] = commit("b", "<script>alert(1)</script>")
    write_scores(store, "b", POOR, {"frames": b"one picture", "seams": b"another"})
    page = render_page(store, commits, scores, title="A & B")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "A &amp; B" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "no file" in page
    assert page.index("MediaError") < page.index("seam_ratio 2.5") < page.index("seam_ratio 1<")
    assert set(re.findall(r'href="([^"]+)"', page)) == {f"videos/{n}.mp4" for n in scores}
    assert not re.findall(r'src="(?!data:)', page)
    assert "<b>1.75</b>" in page  # mean seam ratio of the two


def test_a_chart_rises_with_its_values_and_breaks_at_gaps() -> None:
    svg = ElementTree.fromstring(
        draw_chart([0.0, 1.0, None, 4.0, 2.0], marks=[3]).replace("class=border", "")
    )
    lines = [line.get("points") for line in svg.iter("polyline")]
    assert len(lines) == 2
    heights = [float(point.split(",")[1]) for line in lines for point in line.split()]
    assert heights[2] < heights[3] < heights[1] < heights[0]
    (border,) = svg.iter("line")
    assert float(border.get("x1")) == float(lines[0].split()[0].split(",")[0]) + 2 * (412 / 4)
