"""The driver stage as a plain object over a real pool. (Graphs: test_text_to_video.)"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.clip_driver import DriveClips
from pipelines.conductor import PoolLostError
from pipelines.pool import PoolPlan, start_broker
from pipelines.progress import Board
from pipelines.rows import request_to_json
from pipelines.stages.load_inputs import load_inputs
from pipelines.text_to_video import _make_worker
from tests.pipelines.conducting import PROFILE, long_request
from tests.pipelines.stand_ins import graph, request
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


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
