"""Two processes that train the narrow network in shards; run by ``test_sharding`` with torchrun's
environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. Arguments: folder, what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from musev.errors import ConfigError
from musev.training.checkpoints import CheckpointStore
from musev.training.frozen import freeze_except
from musev.training.loop import resume_together, run_steps
from musev.training.runs import RunConfig, Worker, prepare_run
from musev.training.sharding import is_sharded, shard
from musev.training.stages import VaeStage
from musev.training.vae import VaeLossConfig, VaeTraining, make_vae
from tests.musev.training.small import small_run


def run_of(name: str, folder: Path, **changes: str) -> RunConfig:
    """The run that both the sharded and the plain process train."""
    never = {
        "corruption__drop_reference": "0",
        "corruption__short_window": "0",
        "corruption__no_condition_frame": "0",
        "loop__num_steps": "1",
    }
    return small_run(name, folder, str(folder / "vae"), **(never | changes))


@torch.no_grad()
def revive(module: nn.Module) -> None:
    """Fill the zero layers, behind which nothing has a gradient at first."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def _place(module: nn.Module) -> None:
    revive(module)
    shard(module)


def main(folder: Path) -> None:
    """Train a step, evaluate, save; take the checkpoint up again; leave both for the test."""
    worker = Worker(rank=dist.get_rank(), count=dist.get_world_size(), meet=dist.barrier)
    sharded = Worker(worker.rank, worker.count, worker.meet, place=_place)
    for name in ("reference", "lora"):
        run = run_of(name, folder)
        prepared = prepare_run(run, sharded)
        assert is_sharded(prepared.module)
        parts = [p for p in prepared.module.parameters() if isinstance(p, DTensor)]
        local = sum(p.to_local().numel() for p in parts)
        assert local < 0.6 * sum(p.numel() for p in parts), "each process holds about half"
        store = CheckpointStore(f"{run.out}/checkpoints") if worker.rank == 0 else None
        run_steps(prepared.trainer, prepared.batches_of, run.stage.loop, store=store)
        with prepared.trainer.ema.applied(prepared.module), torch.no_grad():
            prepared.evaluate(1)
        assert all(isinstance(p, DTensor) for p in prepared.module.parameters())
        dist.barrier()
        again = prepare_run(run, sharded)
        assert resume_together(again.trainer, CheckpointStore(f"{run.out}/checkpoints"))
        for (key, one), (_, two) in zip(
            prepared.module.named_parameters(), again.module.named_parameters(), strict=True
        ):
            assert torch.equal(one.full_tensor(), two.full_tensor()), key
        state = again.trainer.state_dict()
        if worker.rank == 0:
            torch.save(state, folder / f"{name}-resumed.pt")
    _refuse_a_vae()


def _refuse_a_vae() -> None:
    module = VaeTraining(make_vae((8, 8)), VaeLossConfig())
    freeze_except(module, VaeStage.trained.fget(_joint()))
    with pytest.raises(ConfigError, match="ddp"):
        shard(module)


def _joint() -> VaeStage:
    from musev.training.stages import get_stage

    stage = get_stage("mini-vae")
    assert isinstance(stage, VaeStage)
    return stage


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        main(Path(sys.argv[1]))
    finally:
        dist.destroy_process_group()
