"""One long clip over real workers: the same bytes whoever computes, dies, hangs or joins."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.checkpoints import ClipStore
from tests.pipelines.conducting import (
    NotedEngine,
    conducted,
    kill,
    long_request,
    rendered_here,
)
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(300)
NUM_TASKS = 4 * 10


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


@pytest.mark.parametrize(
    "workers",
    [(1, 1), (3, 3), *(pytest.param((n, n), marks=pytest.mark.faults) for n in (2, 7))],
)
def test_bytes_are_those_of_one_loop(folder: Path, workers: tuple[int, int]) -> None:
    clip, engine = long_request(), NotedEngine(folder)
    run = conducted(folder, clip, engine, workers=workers)
    row, video = run.run()
    assert video == rendered_here(folder, clip)
    assert row["measured"].num_frames == 40
    assert row["tasks"]["tasks"] == NUM_TASKS
    assert len(engine.windows()) == len(set(engine.windows())) == NUM_TASKS, "no window twice"


def test_workers_that_join_in_the_middle_take_their_share(folder: Path) -> None:
    clip, engine = long_request(), NotedEngine(folder, seconds=0.5)
    row, video = conducted(folder, clip, engine, workers=(1, 2)).run()
    assert video == rendered_here(folder, clip)
    assert len(engine.workers()) == 2
    assert row["tasks"]["tasks"] == NUM_TASKS


def test_a_killed_worker_costs_the_tasks_in_its_hands(folder: Path) -> None:
    clip, engine = long_request(), NotedEngine(folder, seconds=0.05)
    run = conducted(folder, clip, engine, workers=(2, 2))
    chance, killed = random.Random(4), []

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage == "denoise" and done >= 5 and not killed:
            killed.append(int(chance.choice(sorted(engine.workers()))))
            kill(killed[0])

    run.settings["tell_every_s"] = 0.0
    row, video = run.run(on_progress)
    assert killed
    assert video == rendered_here(folder, clip)
    assert 1 <= row["tasks"]["lost"] <= 2, "one in work, one waiting behind it"
    assert NUM_TASKS <= len(engine.windows()) <= NUM_TASKS + 1
    deadline = time.monotonic() + 90
    while len(engine.pids()) < 2:
        assert time.monotonic() < deadline, "nobody took the place"
        time.sleep(0.1)


@pytest.mark.faults
def test_ten_workers_killed_at_ten_tasks(folder: Path) -> None:
    clip, engine = long_request(), NotedEngine(folder, seconds=0.05)
    run = conducted(folder, clip, engine, workers=(3, 3))
    chance = random.Random(7)
    moments = sorted(chance.sample(range(1, NUM_TASKS - 1), 10))

    def on_progress(stage: str, done: int, total: int) -> None:
        if moments and stage == "denoise" and done >= moments[0] and engine.pids():
            kill(chance.choice(engine.pids()))
            moments.pop(0)

    run.settings["tell_every_s"] = 0.0
    row, video = run.run(on_progress)
    assert not moments
    assert video == rendered_here(folder, clip)
    assert row["tasks"]["lost"] >= 5
    assert len(engine.windows()) <= NUM_TASKS + 10


def test_a_worker_that_hangs_is_overtaken(folder: Path) -> None:
    clip, engine = long_request(), NotedEngine(folder, hang_once=20)
    run = conducted(folder, clip, engine, workers=(2, 2), late_s=3.0)
    row, video = run.run()
    assert video == rendered_here(folder, clip)
    assert row["tasks"]["late"] >= 1
    assert row["tasks"]["tasks"] == NUM_TASKS


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_hangs_over_the_conditions_is_overtaken_or_replaced(
    folder: Path, workers: int
) -> None:
    clip, engine = long_request(), NotedEngine(folder, hang_first=True)
    run = conducted(folder, clip, engine, workers=(workers, workers), late_s=0.5)
    row, video = run.run()
    assert video == rendered_here(folder, clip)
    assert row["tasks"]["late"] >= 1
    assert row["tasks"]["tasks"] == NUM_TASKS
    if workers == 1:
        assert row["tasks"]["lost"] == 1, "nobody else could have gone on"


def test_another_attempt_goes_on_from_the_last_checkpoint(folder: Path) -> None:
    class Stop(BaseException):
        """Takes the conductor down in the middle."""

    clip, engine = long_request(), NotedEngine(folder)
    first = conducted(folder, clip, engine, workers=(2, 2), checkpoint_tasks=8, tell_every_s=0.0)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "denoise" and done == 30:
            raise Stop

    with pytest.raises(Stop):
        first.run(stop)
    store = ClipStore(first.wired.ledger, first.row["sample_id"])
    snapshot = store.load()
    assert snapshot is not None
    before = len(engine.windows())
    second = conducted(folder, clip, engine, workers=(3, 3), checkpoint_tasks=8)
    row, video = second.run()
    assert video == rendered_here(folder, clip)
    assert row["tasks"]["resumed_tasks"] >= 30 - 2 * 8, (
        "at most two intervals: one is being written"
    )
    assert row["tasks"]["tasks"] == NUM_TASKS - row["tasks"]["resumed_tasks"]
    assert len(engine.windows()) - before == row["tasks"]["tasks"]
