"""The conduct stage beside its conductor: attempts, failures, what it leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.conductor import PoolLostError
from pipelines.pool import FORGOTTEN_S
from pipelines.progress import clip_share, keep_telling
from pipelines.resources import MAX_ATTEMPTS
from pipelines.stages import conduct
from tests.pipelines.conducting import conducted, long_request
from tests.pipelines.stand_ins import colour_engine
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


def test_failures_carry_their_reason_and_attempts_are_limited(folder: Path) -> None:
    import ray

    run = conducted(folder, long_request(prompt="!raise"), colour_engine, workers=(1, 1))
    for number in range(1, MAX_ATTEMPTS + 1):
        row, _ = run.run()
        assert (row["status"], row["error_stage"], row["attempts"]) == ("failed", "conduct", number)
        assert "no such thing" in row["error_message"]
        deadline = time.monotonic() + FORGOTTEN_S / 2  # handed back, and not found forgotten
        while ray.get(run.broker.view.remote()).num_held:
            assert time.monotonic() < deadline, "the worker is not free for the next row"
            time.sleep(0.05)
    row, _ = run.run()
    assert row["status"] == "quarantined"
    assert "video_path" not in row


def test_a_pool_that_is_gone_is_not_the_rows_fault(folder: Path) -> None:
    import ray

    run = conducted(folder, long_request(), colour_engine, workers=(1, 1))
    ray.kill(run.broker)
    with pytest.raises(PoolLostError):
        run.run()
    attempts = folder / "out" / "work" / run.row["sample_id"] / "attempts"
    assert not list(attempts.glob("*.json")), "an attempt that met no pool does not count"


def test_a_long_join_is_told_from_its_first_segment_to_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    real = conduct.join_segments

    def slow_join(paths: Any, target: Path) -> int:
        before, deadline = len(told), time.monotonic() + 20
        while len(told) < before + 2:
            assert time.monotonic() < deadline, "nothing is told while packets are copied"
            time.sleep(0.01)
        return real(paths, target)

    monkeypatch.setattr(conduct, "join_segments", slow_join)
    monkeypatch.setattr(conduct, "keep_telling", partial(keep_telling, period_s=0.02))
    run = conducted(folder, long_request(), colour_engine, workers=(1, 1))
    row, video = run.run(lambda *event: told.append(event))
    assert row["status"] == "ready", row.get("error_message")
    assert video
    joins = told[next(n for n, event in enumerate(told) if event[0] == "join") :]
    assert [event for event in joins if event[1]] == [("join", n, 6) for n in range(1, 7)]
    assert {clip_share(*event) for event in joins} == {1.0}, "progress does not fall back"
    assert not [thread for thread in threading.enumerate() if thread.name == "keep-telling"]
