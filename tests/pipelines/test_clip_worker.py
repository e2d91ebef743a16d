"""A worker: what it keeps open, what it answers. (Whole runs: test_conductor.)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from musev.media import probe_video
from pipelines.clip_worker import OPEN_CLIPS, ClipWorker, SharedParts
from pipelines.pool import PoolPlan, start_broker
from pipelines.progress import Board
from pipelines.rows import request_to_json
from pipelines.stages.load_inputs import load_inputs
from pipelines.wire import pack, unpack
from tests.pipelines.conducting import PROFILE, long_request
from tests.pipelines.stand_ins import graph, picture
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


class Watched(ClipWorker):
    """Tells what it keeps open."""

    def num_open(self) -> int:
        return len(self._open)


def make(folder: Path) -> tuple[Any, Any]:
    import ray

    wired = graph(folder, profile=PROFILE)
    setup = wired.worker_setup()
    board = ray.remote(Board).options(num_cpus=0).remote()
    return ray.remote(Watched).options(num_cpus=0.01).remote(setup, board), wired


def test_a_long_clips_tasks_one_after_the_other(folder: Path) -> None:
    import ray

    worker, wired = make(folder)
    clip = long_request(condition_image=picture(folder / "face.png", colour=51, side=64))
    row = {"row": 0, "request": request_to_json(clip)}
    row = load_inputs(row, cache=wired.cache, name_sample=wired.name_sample)
    conditions, facts, seconds, uses = ray.get(worker.condition.remote(row))
    assert facts.num_given == 1
    assert float(facts.given_BCTHW.mean()) == pytest.approx(0.2)
    assert seconds >= 0
    assert uses == {}, "the stand-in computes no parts"
    references = [ray.put(row), ray.put(conditions)]
    noisy = pack(torch.zeros(1, 4, 3, 4, 4))
    answers = [
        unpack(ray.get(worker.denoise.remote(f"clip-{n}", references, noisy, 500.0, (0, 1, 2)))[0])
        for n in range(OPEN_CLIPS + 2)
    ]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    assert ray.get(worker.num_open.remote()) == OPEN_CLIPS
    latents = pack(torch.zeros(1, 4, 5, 4, 4))
    count, _ = ray.get(worker.decode.remote(8.0, latents, "work/x/segments/000000.mp4"))
    assert count == 5
    stored = folder / "out" / "work" / "x" / "segments" / "000000.mp4"
    assert probe_video(stored).num_frames == 5
    assert ray.get(worker.hello.remote()) is None


def test_parts_are_shared_between_workers(folder: Path) -> None:
    broker = start_broker(PoolPlan(least=0, most=0), lambda me: None)
    one, other = SharedParts(broker, "cpu"), SharedParts(broker, "cpu")
    made: list[str] = []

    def compute() -> dict[str, torch.Tensor]:
        made.append("part")
        return {"features": torch.arange(4.0)}

    assert torch.equal(one.find("reference-a", compute)["features"], torch.arange(4.0))
    assert torch.equal(other.find("reference-a", compute)["features"], torch.arange(4.0))
    assert made == ["part"]

    def fail() -> None:
        raise ValueError("bad picture")

    with pytest.raises(ValueError, match="bad picture"):
        one.find("reference-b", fail)
    assert other.find("reference-b", compute)
    assert made == ["part"] * 2
