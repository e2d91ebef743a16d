"""The driver stage as a plain object over a real pool. (Graphs: test_text_to_video.)"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from musev.errors import StorageError
from pipelines import clip_driver
from pipelines.clip_driver import DriveClips
from pipelines.conductor import PoolLostError
from pipelines.pool import Lease, PoolPlan, start_broker
from pipelines.progress import Board, keep_telling
from pipelines.rows import request_to_json
from pipelines.stages.load_inputs import load_inputs
from pipelines.text_to_video import _make_worker
from tests.pipelines.conducting import PROFILE, long_request
from tests.pipelines.stand_ins import graph, request
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


@pytest.mark.usefixtures("ray_here")
def test_short_and_long_rows_share_one_worker_and_all_are_committed(folder: Path) -> None:
    import ray

    wired = graph(folder, profile=PROFILE)
    setup = wired.worker_setup()
    board = ray.remote(Board).options(num_cpus=0).remote()
    broker = start_broker(
        PoolPlan(least=1, most=1),
        partial(_make_worker, setup=setup, board=board, resources={"num_cpus": 0.01}),
    )
    drive = DriveClips(setup=setup, broker=broker, board=board, num_workers=1)
    requests = [long_request(), request("a"), request("b"), long_request("later", num_frames=30)]
    rows = [
        load_inputs(
            {"row": n, "request": request_to_json(item)},
            cache=wired.cache,
            name_sample=wired.name_sample,
        )
        | {"order": n}
        for n, item in enumerate(requests)
    ]
    outcomes: dict[str, Any] = {}

    def bring(row: dict[str, Any]) -> None:
        outcome = drive(row)
        outcomes[outcome["request_id"]] = outcome["status"]

    threads = [threading.Thread(target=bring, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert outcomes == dict.fromkeys(("long", "a", "b", "later"), "committed")
    records = {record["request_id"]: record for record in wired.ledger.committed().values()}
    assert records["long"]["tasks"]["tasks"] == 40
    assert "tasks" not in records["a"]
    ray.kill(broker)
    with pytest.raises(PoolLostError):
        drive(rows[1])


def stand_in(call: Callable[..., Any]) -> Any:
    """Something with ``remote``, as the methods of an actor's handle have it."""
    return SimpleNamespace(remote=call)


def drive_stand_ins(
    leases: list[Lease],
    *,
    broker_hears: Callable[..., Any] = lambda *_: None,
    board_hears: Callable[..., Any] = lambda *_: None,
    commit: Callable[..., Any] = lambda row: row,
) -> DriveClips:
    """A driver that gets these leases one after another; an answer is a function."""
    left = iter(leases)
    broker = SimpleNamespace(
        lease=stand_in(lambda _: lambda: next(left)),
        lost=stand_in(partial(broker_hears, "lost")),
        hand_back=stand_in(partial(broker_hears, "hand_back")),
    )
    setup: Any = SimpleNamespace(ledger=None, profile=PROFILE, device="cpu", commit=lambda: commit)
    board = SimpleNamespace(row=stand_in(board_hears))
    return DriveClips(setup=setup, broker=broker, board=board, num_workers=1)


def lease_that_answers(number: int, answer: Callable[[], Any]) -> Lease:
    worker = SimpleNamespace(clip=stand_in(lambda _: answer))
    return Lease(worker, name=0, life=number, number=number)


def short_row() -> dict[str, Any]:
    return {"sample_id": "ab", "order": 0, "request": request_to_json(request("a"))}


def test_a_row_whose_worker_ran_out_of_memory_goes_to_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    from ray.exceptions import OutOfMemoryError

    def killed() -> None:
        raise OutOfMemoryError("the memory monitor has ended the worker")

    monkeypatch.setattr(ray, "get", lambda answer: answer())
    heard: list[Any] = []
    leases = [lease_that_answers(1, killed), lease_that_answers(2, lambda: "the outcome")]
    drive = drive_stand_ins(leases, broker_hears=lambda *event: heard.append(event))
    assert drive(short_row()) == "the outcome"
    assert heard == [("lost", leases[0]), ("hand_back", leases[0]), ("hand_back", leases[1])]


def test_an_error_that_a_worker_answers_with_does_not_cost_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    from ray.exceptions import RayTaskError

    def failed() -> None:
        raise RayTaskError("clip", "the traceback", StorageError("no answer"), ip="127.0.0.1")

    monkeypatch.setattr(ray, "get", lambda answer: answer())
    heard: list[Any] = []
    leases = [lease_that_answers(1, failed)]
    drive = drive_stand_ins(leases, broker_hears=lambda *event: heard.append(event))
    with pytest.raises(StorageError, match="no answer"):
        drive(short_row())
    assert heard == [("hand_back", leases[0])]


def test_a_long_commit_is_told_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def slow_commit(row: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while len(told) < 2:
            assert time.monotonic() < deadline, "nothing is told while the film is uploaded"
            time.sleep(0.01)
        return {**row, "status": "committed"}

    monkeypatch.setattr(clip_driver, "ConductClip", lambda **_: lambda row: row)
    monkeypatch.setattr(clip_driver, "keep_telling", partial(keep_telling, period_s=0.02))
    drive = drive_stand_ins([], board_hears=lambda *event: told.append(event), commit=slow_commit)
    row = {"sample_id": "ab", "order": 0, "request": request_to_json(long_request())}
    assert drive(row)["status"] == "committed"
    assert {event[:2] for event in told} == {("ab", "commit")}
    assert not [thread for thread in threading.enumerate() if thread.name == "keep-telling"]
