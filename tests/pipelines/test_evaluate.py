"""The graph: committed videos are judged once, on a real local Ray where that matters."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from musev.config import EncoderConfig, to_plain
from musev.errors import MusevError
from musev.media import write_segment
from musev.synthetic.clips import draw_clip
from pipelines.evaluate import EvaluationGraph, plan_evaluation, publish, run_evaluation
from pipelines.evaluation_page import PAGE
from pipelines.ledger import RESULTS, Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import Row
from pipelines.scores import Scored, read_scores, write_scores
from pipelines.stages.judge import VERSION
from tests.pipelines.judges import DiesAtTwo, DiesOnce
from tests.pipelines.stand_ins import LAPTOP, request
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)
NAMES = ("one", "two", "three")


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    """Three committed drawn clips, the second of which is damaged, and a results table."""
    ledger = Ledger(str(folder / "out"))
    for number, name in enumerate(NAMES):
        commit(ledger, name, folder, num_frames=8 + number)
    ledger.store.put(ledger.find_commit("two")["video"], b"no video")  # type: ignore[index]
    ledger.write_results([(name, name, {}) for name in NAMES])
    return ledger


def commit(ledger: Ledger, name: str, folder: Path, num_frames: int, **more: object) -> None:
    clip = draw_clip(3, num_frames, height=64, width=64, num_frames=num_frames)
    video = folder / "video.mp4"
    write_segment(video, clip.frames_TYXC, fps=8.0, encoder=EncoderConfig())
    asked = request(name, prompt=clip.caption, num_frames=num_frames, height=64, width=64, fps=8.0)
    measured = {"fps": 8.0, "num_frames": num_frames, "height": 64, "width": 64}
    attempt, _ = ledger.begin_attempt(name)
    record = {"request_id": name, "request": to_plain(asked), **measured, **more}
    ledger.commit(name, attempt, video, record)


def graph(ledger: Ledger, **settings: object) -> EvaluationGraph:
    cache = MediaCache(run_id="test", folder=f"{ledger.out_uri}/../cache")
    values = {"ledger": ledger, "cache": cache, "shape": LAPTOP, "num_workers": 1, **settings}
    return EvaluationGraph(**values)  # type: ignore[arg-type]


def judged(sha256: str, version: int = VERSION, **reasons: str) -> Scored:
    return Scored(sha256=sha256, version=version, scores={"flicker": 0.5}, reasons=reasons)


def test_only_what_has_no_current_scores_is_judged(ledger: Ledger) -> None:
    commits = ledger.committed()
    plan = plan_evaluation(ledger)
    assert [row["sample_id"] for row in plan.to_judge] == ["three", "two", "one"]  # long ones first
    digest = {name: record["sha256"] for name, record in commits.items()}
    write_scores(ledger.store, "one", judged(digest["one"]), {})
    write_scores(ledger.store, "two", judged(digest["two"], VERSION - 1), {})
    write_scores(ledger.store, "three", judged(digest["two"]), {})
    assert {row["sample_id"] for row in plan_evaluation(ledger).to_judge} == {"two", "three"}
    write_scores(ledger.store, "three", judged(digest["three"], video="no file"), {})
    assert {row["sample_id"] for row in plan_evaluation(ledger).to_judge} == {"two", "three"}
    assert plan_evaluation(ledger).num_there == 1
    assert set(plan_evaluation(ledger, only={"one"}).commits) == {"one"}


@pytest.mark.parametrize("name", ["condition", "reference", "keypoints"])
def test_media_that_could_not_be_read_are_tried_again(ledger: Ledger, name: str) -> None:
    digest = ledger.find_commit("one")["sha256"]  # type: ignore[index]
    reasons = {name: "storage out of reach", "seam_ratio": "one window"}
    write_scores(ledger.store, "one", judged(digest, **reasons), {})
    assert "one" in {row["sample_id"] for row in plan_evaluation(ledger).to_judge}
    write_scores(ledger.store, "one", judged(digest, seam_ratio="one window"), {})
    assert "one" not in {row["sample_id"] for row in plan_evaluation(ledger).to_judge}


def test_rows_say_what_their_media_held_when_they_were_rendered(
    ledger: Ledger, folder: Path
) -> None:
    commit(ledger, "four", folder, 8, media_digests={"reference_image": "sha256:1"})
    rows = {row["sample_id"]: row for row in plan_evaluation(ledger).to_judge}
    assert json.loads(rows["four"]["media_digests"]) == {"reference_image": "sha256:1"}
    assert json.loads(rows["one"]["media_digests"]) == {}


def test_a_place_without_videos_is_an_error_with_a_remedy(folder: Path) -> None:
    with pytest.raises(MusevError, match="no committed videos"):
        plan_evaluation(Ledger(str(folder / "empty")))


def test_publishing_needs_no_cluster(ledger: Ledger) -> None:
    digest = ledger.find_commit("one")["sha256"]  # type: ignore[index]
    write_scores(ledger.store, "one", judged(digest), {})
    assert set(publish(ledger, plan_evaluation(ledger), title="t")) == {"one"}
    assert b"1 of 3 videos judged" in ledger.store.read(PAGE)


def test_a_run_on_ray_judges_all_writes_table_and_page_and_leaves_nothing_to_do(
    ledger: Ledger,
) -> None:
    outcomes: list[Row] = []
    with local_ray():
        scores = run_evaluation(
            graph(ledger), plan_evaluation(ledger), title="test", on_row=outcomes.append
        )
    assert {row["sample_id"]: row["status"] for row in outcomes} == {
        "one": "judged",
        "two": "failed",
        "three": "judged",
    }
    assert "MediaError" in scores["two"].reasons["video"]
    assert scores["one"].scores["scene_accuracy"] == 1
    table = pq.read_table(io.BytesIO(ledger.store.read(RESULTS)))
    metrics = dict(zip(table["sample_id"].to_pylist(), table["metrics"].to_pylist(), strict=True))
    assert dict(metrics["one"]) == scores["one"].scores
    assert metrics["two"] == []
    page = ledger.store.read(PAGE).decode()
    assert page.index(">two<") < page.index(">one<")
    assert page.count("data:image/jpeg") >= 2
    again = plan_evaluation(ledger)
    assert [row["sample_id"] for row in again.to_judge] == ["two"]


@pytest.mark.faults
@pytest.mark.timeout(900)  # a dozen workers die, and each loads torch first
def test_videos_whose_judge_dies_are_judged_again_and_given_up_at_last(
    ledger: Ledger,
) -> None:
    with local_ray():
        outcomes: list[Row] = []
        once, at_two = graph(ledger, judge=DiesOnce), graph(ledger, judge=DiesAtTwo)
        run_evaluation(once, plan_evaluation(ledger), title="t", on_row=outcomes.append)
        assert (Path(ledger.out_uri).parent / "died").exists()
        assert sorted(row["sample_id"] for row in outcomes) == ["one", "three", "two"]
        for name in read_scores(ledger.store):
            ledger.store.delete([f"metrics/{name}.json"])
        outcomes = []
        run_evaluation(at_two, plan_evaluation(ledger), title="t", on_row=outcomes.append)
    reasons = {row["sample_id"]: row["reason"] for row in outcomes}
    assert "died or stood still" in reasons["two"]
    assert (reasons["one"], reasons["three"]) == ("", "")
    assert set(read_scores(ledger.store)) == {"one", "three"}
