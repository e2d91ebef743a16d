"""Shards: two processes that each hold half end where one process ends that holds all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musev.training.checkpoints import CheckpointStore
from musev.training.loop import resume
from musev.training.runs import Worker, export_to, prepare_run
from musev.training.sharding import gathered, is_sharded, spread_like
from tests.musev.training.sharded_step import revive, run_of
from tests.musev.training.small import save_small_vae

ROOT = Path(__file__).parents[3]


def _run_two(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.musev.training.sharded_step", str(folder)]
    processes = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_halves_end_where_the_whole_ends(tmp_path: Path) -> None:
    save_small_vae(tmp_path)
    _run_two(tmp_path)
    for name in ("reference", "lora"):
        run = run_of(name, tmp_path)
        found = CheckpointStore(f"{run.out}/checkpoints").load()
        assert found is not None
        plain = prepare_run(run, Worker(place=revive))
        shares = [prepare_run(run, Worker(rank=rank, count=2)).batches_of(0) for rank in range(2)]
        metrics = plain.trainer.do_step([batch for share in shares for batch in share], 1)
        assert found["step"] == 1
        logged = found["history"][0]
        assert logged["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-3)
        expected = plain.trainer.state_dict()
        assert found["weights"].keys() == expected["weights"].keys()
        states = (found["optimizer"]["state"], expected["optimizer"]["state"])
        # After one step the first moment is a tenth of the gradient: all of it is compared, since
        # what Adam makes of it says nothing of its size.
        largest = max(entry["exp_avg"].abs().max() for entry in states[1].values())
        assert states[0].keys() == states[1].keys()
        for number, entry in states[1].items():
            theirs, ours = entry["exp_avg"], states[0][number]["exp_avg"]
            assert (ours - theirs).norm() <= 1e-2 * theirs.norm() + 1e-6 * largest, number
        resumed = torch.load(tmp_path / f"{name}-resumed.pt", weights_only=True)
        for key, value in found["weights"].items():
            assert torch.equal(resumed["weights"][key], value)
        for number, entry in found["optimizer"]["state"].items():
            again = resumed["optimizer"]["state"][number]
            assert all(torch.equal(again[key], entry[key]) for key in entry)
        # One process takes it up and exports what the two have learnt.
        alone = prepare_run(run)
        assert resume(alone.trainer, CheckpointStore(f"{run.out}/checkpoints"))
        export_to(alone, str(tmp_path / f"{name}-export"))
        assert (tmp_path / f"{name}-export" / "training.json").is_file()


def test_whole_tensors_pass_through() -> None:
    state = {"a": torch.ones(2), "b": [{"c": torch.zeros(1), "d": 3}]}
    found = gathered(state)
    assert found["a"] is state["a"]
    assert found["b"][0]["d"] == 3
    assert spread_like(state["a"], torch.zeros(2)) is state["a"]
    assert not is_sharded(torch.nn.Linear(2, 2))
