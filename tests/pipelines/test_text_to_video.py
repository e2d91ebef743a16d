"""The graph on a real local Ray: good rows, bad rows, rows that take their worker down."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from musev.config import ClipRequest, SamplingConfig, WindowConfig
from musev.media import probe_video
from pipelines import text_to_video
from pipelines.progress import BoardView
from pipelines.resources import ClusterShape
from pipelines.text_to_video import (
    Graph,
    Tally,
    WorkersFailError,
    check_inputs,
    check_inputs_here,
    render_rows,
)
from tests.pipelines.stand_ins import (
    GpuEngine,
    broken_engine,
    dying_engine,
    graph,
    misbehave,
    picture,
    request,
)
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray(num_gpus=2):
        yield


def render(wired: Graph, *requests: ClipRequest) -> dict[str, dict[str, Any]]:
    """Run both phases; outcomes by request id."""
    rows = list(check_inputs(wired, requests))
    assert {row["status"] for row in rows} == {"ready"}
    outcomes = render_rows(wired, rows, on_tick=lambda tally, view: None)
    return {row["request_id"]: row for row in outcomes}


def digests(wired: Graph) -> dict[str, str]:
    return {name: record["sha256"] for name, record in wired.ledger.committed().items()}


def test_every_row_is_checked_and_bad_ones_do_not_touch_the_others(folder: Path) -> None:
    face = picture(folder / "face.png")
    (folder / "empty.png").touch()
    requests = [
        request("good", condition_image=face),
        request("missing", condition_image=str(folder / "missing.png")),
        request("empty", reference_image=str(folder / "empty.png")),
        request("text only"),
    ]
    wired = graph(folder)
    rows = {row["row"]: row for row in check_inputs(wired, requests)}
    assert [rows[number]["status"] for number in range(4)] == ["ready", "failed", "failed", "ready"]
    here = check_inputs_here(wired, requests)
    assert [row["sample_id"] for row in here] == [rows[n]["sample_id"] for n in range(4)]


def test_a_check_that_loses_its_process_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died, build = folder / "died", text_to_video._inputs_dataset

    def die_once(rows: list[Any], *, graph: Graph) -> Any:
        if not died.exists():
            died.touch()
            os._exit(1)
        return build(rows, graph=graph)

    monkeypatch.setattr(text_to_video, "_inputs_dataset", die_once)
    rows = list(check_inputs(graph(folder), [request("one"), request("two")]))
    assert died.exists()
    assert sorted(row["row"] for row in rows) == [0, 1]
    assert {row["status"] for row in rows} == {"ready"}


def test_rows_are_committed_and_their_bytes_do_not_depend_on_the_number_of_workers(
    folder: Path,
) -> None:
    face = picture(folder / "face.png")
    requests = [
        request(f"r{index}", condition_image=face, num_frames=2 + index) for index in range(5)
    ]
    one = graph(folder / "one", num_workers=1)
    two = graph(folder / "two", num_workers=2)
    outcomes = render(one, *requests)
    assert {row["status"] for row in outcomes.values()} == {"committed"}
    assert render(two, *requests).keys() == outcomes.keys()
    assert digests(one) == digests(two)
    for name, record in two.ledger.committed().items():
        video = folder / "two" / "out" / record["video"]
        assert hashlib.sha256(video.read_bytes()).hexdigest() == record["sha256"]
        assert probe_video(video).num_frames == record["num_frames"], name


def test_a_row_that_kills_its_worker_is_quarantined_and_the_others_are_rendered_once(
    folder: Path,
) -> None:
    wired = graph(folder)
    outcomes = render(
        wired,
        *(request(f"good{index}") for index in range(5)),
        request("poison", prompt="!die", num_frames=9),
        request("bug", prompt="!raise"),
    )
    assert outcomes["poison"]["status"] == "quarantined"
    assert outcomes["bug"]["status"] == "failed"
    records = wired.ledger.committed()
    assert sorted(record["request_id"] for record in records.values()) == [
        f"good{index}" for index in range(5)
    ]
    assert {record["attempts"] for record in records.values()} == {1}
    assert wired.ledger.failures()[outcomes["poison"]["sample_id"]]["status"] == "quarantined"


@pytest.mark.faults
def test_a_worker_that_leaves_in_good_order_does_not_stop_the_run(folder: Path) -> None:
    # Ray counts a clean exit as the user's wish and would not restart the actor; the pool must.
    wired = graph(folder)
    outcomes = render(
        wired,
        request("leaver1", prompt="!leave", num_frames=9),
        request("leaver2", prompt="!leave", num_frames=8),
        request("good1"),
        request("good2"),
    )
    assert {name: row["status"] for name, row in outcomes.items()} == {
        "leaver1": "quarantined",
        "leaver2": "quarantined",
        "good1": "committed",
        "good2": "committed",
    }


def test_what_keeps_workers_from_loading_ends_the_run_with_its_reason(folder: Path) -> None:
    with pytest.raises(WorkersFailError, match="not what they seem"):
        render(graph(folder, load_engine=broken_engine), request("any"))


@pytest.mark.faults
def test_workers_that_die_while_loading_end_the_run(folder: Path) -> None:
    with pytest.raises(WorkersFailError, match="while loading the networks"):
        render(graph(folder, load_engine=dying_engine, num_workers=1), request("any"))


LONG = {
    "num_frames": 26,
    "sampling": SamplingConfig(
        num_steps=3, windows=WindowConfig(num_frames=6, overlap=2), solver="dpmpp"
    ),
}


def test_a_long_row_is_one_video_whatever_the_number_of_workers(folder: Path) -> None:
    face = picture(folder / "face.png")
    rows = [
        request("long", condition_image=face, **LONG),
        request("short", condition_image=face),
        request("longer", **{**LONG, "num_frames": 40}),
    ]
    one = graph(folder / "one", num_workers=1)
    three = graph(folder / "three", num_workers=3, least_workers=1)
    for wired in (one, three):
        outcomes = render(wired, *rows)
        assert {row["status"] for row in outcomes.values()} == {"committed"}
    assert digests(one) == digests(three)
    record = next(r for r in three.ledger.committed().values() if r["request_id"] == "long")
    assert record["num_frames"] == 26
    assert {"condition", "denoise", "decode", "join"} <= set(record["stage_seconds"])
    assert not [path for path in (folder / "three" / "out" / "work").rglob("*") if path.is_file()]


def test_a_window_that_kills_its_worker_costs_its_row_and_no_other(folder: Path) -> None:
    wired = graph(folder)
    outcomes = render(
        wired,
        request("poison", prompt="!die", **LONG),
        request("bug", prompt="!raise", **LONG),
        request("good", **LONG),
    )
    assert {name: row["status"] for name, row in outcomes.items()} == {
        "poison": "quarantined",
        "bug": "failed",
        "good": "committed",
    }
    assert outcomes["bug"]["error_message"].startswith("no such thing as this")


def test_with_gpus_every_worker_holds_one_of_its_own(folder: Path) -> None:
    gpus = ClusterShape(num_cpus=2, num_gpus=2)
    wired = graph(folder, shape=gpus, load_engine=GpuEngine(folder / "gpus"))
    outcomes = render(wired, *(request(f"r{index}", prompt="!sleep 1") for index in range(4)))
    assert {row["status"] for row in outcomes.values()} == {"committed"}
    records = wired.ledger.committed().values()
    assert all(record["gpu_seconds"] > 0 for record in records)
    seen = (folder / "gpus").read_text().split()
    assert sorted(seen) == ["0", "1"]


def test_progress_is_told_while_rows_are_in_work(folder: Path) -> None:
    wired = graph(folder, num_workers=1)
    seen: list[tuple[int, int]] = []

    def on_tick(tally: Tally, view: BoardView) -> None:
        seen.append((len(tally.outcomes), view.workers_ready))

    rows = list(check_inputs(wired, [request("slow", prompt="!sleep 3"), request("quick")]))
    render_rows(wired, rows, on_tick=on_tick)
    assert (0, 1) in seen  # a worker is there and nothing is finished
    assert seen[-1][0] == 2
    assert misbehave("an ordinary prompt") is None
