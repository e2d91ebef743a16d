"""The loop: what it calls when, and that a resumed run has the bits of one that never stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from musev.errors import ConfigError, MusevError, WeightsError
from musev.training.checkpoints import CheckpointStore
from musev.training.loop import (
    Hooks,
    LoopConfig,
    Trainer,
    evaluating,
    resume,
    resume_together,
    run_steps,
    seed_of,
)
from musev.training.optimizer import Batch, Losses, OptimizerConfig

CONFIG = OptimizerConfig(learning_rate=0.05, warmup_steps=2, ema_decay=0.5)
LOOP = LoopConfig(num_steps=9, log_every=2, evaluate_every=3, save_every=2)


class _Line(nn.Module):
    """Fits a line; frozen offset."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1, 1))
        self.offset = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, batch: Batch) -> Losses:
        error = ((self.slope * batch["x"] + self.offset - 3 * batch["x"]) ** 2).mean()
        return {"loss": error}


def _batches(step: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed_of("test", step))
    return [{"x": torch.rand(4, 1, generator=generator)} for _ in range(2)]


def _state(trainer: Trainer) -> dict[str, Tensor]:
    optimizer = trainer.optimizer.state_dict()["state"][0]
    return {
        "slope": trainer.module.slope.detach(),
        "average": trainer.ema.averages["slope"],
        "first": optimizer["exp_avg"],
        "second": optimizer["exp_avg_sq"],
        "updates": optimizer["step"],
    }


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(stop: int, tmp_path: Path) -> None:
    whole = Trainer(_Line(), CONFIG)
    run_steps(whole, _batches, LOOP)
    store = CheckpointStore(str(tmp_path))

    class Killed(Exception):
        """Stands for the process's end."""

    def until(step: int) -> list[Batch]:
        if step == stop:
            raise Killed
        return _batches(step)

    with pytest.raises(Killed):
        run_steps(Trainer(_Line(), CONFIG), until, LOOP, store=store)
    again = Trainer(_Line(), CONFIG)
    assert resume(again, store) == (stop >= 2)
    assert again.step == stop // 2 * 2
    run_steps(again, _batches, LOOP, store=store)
    assert again.step == 9
    expected = _state(whole)
    for name, value in _state(again).items():
        assert torch.equal(value, expected[name]), name
    losses = [e["loss"] for e in whole.history if "loss" in e]
    assert [e["loss"] for e in again.history if "loss" in e] == losses
    assert losses[-1] < losses[0]


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    run_steps(Trainer(_Line(), CONFIG), _batches, LOOP, store=store)
    other = _Line()
    other.offset.requires_grad_(True)
    with pytest.raises(ConfigError, match="offset"):
        resume(Trainer(other, CONFIG), store)


def test_everything_happens_when_it_should(tmp_path: Path) -> None:
    logged, evaluated, saved = [], [], []
    store = CheckpointStore(str(tmp_path), keep=99)
    trainer = Trainer(_Line(), CONFIG)

    def evaluate(step: int) -> dict[str, float]:
        average = trainer.ema.averages["slope"]
        assert torch.equal(trainer.module.slope, average), "the average stands in"
        assert not trainer.module.training
        assert not torch.is_grad_enabled()
        evaluated.append(step)
        return {"score": float(step)}

    hooks = Hooks(
        on_log=lambda step, metrics: logged.append((step, sorted(metrics))),
        evaluate=evaluate,
        on_save=lambda saver: saved.append(saver.step),
    )
    run_steps(trainer, _batches, LOOP, store=store, hooks=hooks)
    assert evaluated == [3, 6, 9]
    assert saved == store.steps() == [2, 3, 4, 6, 8, 9], "what is evaluated is saved too"
    last = store.load()
    assert last is not None
    assert last["history"][-1] == {"step": 9, "score": 9.0}
    kinds = ["grad_norm", "learning_rate", "loss", "seconds_per_step"]
    assert [step for step, names in logged if names == kinds] == [2, 4, 6, 8, 9]
    assert [step for step, names in logged if names == ["score"]] == [3, 6, 9]
    assert trainer.module.training
    assert not torch.equal(trainer.module.slope, trainer.ema.averages["slope"])


def test_a_run_goes_on_past_an_evaluation_that_fails(tmp_path: Path) -> None:
    store, trainer = CheckpointStore(str(tmp_path)), Trainer(_Line(), CONFIG)

    def evaluate(step: int) -> dict[str, float]:
        raise MusevError(f"no room at step {step}")

    with pytest.raises(MusevError, match="step 3"):
        run_steps(trainer, _batches, LOOP, store=store, hooks=Hooks(evaluate=evaluate))
    again = Trainer(_Line(), CONFIG)
    assert resume(again, store)
    assert again.step == 3
    with pytest.raises(MusevError, match="step 6"):
        run_steps(again, _batches, LOOP, store=store, hooks=Hooks(evaluate=evaluate))


class _Wide(nn.Module):
    """Two factors, as a LoRA's: of any rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.ones(1, rank))

    def forward(self, batch: Batch) -> Losses:
        return {"loss": (self.up.sum() * batch["x"]).mean()}


def test_a_checkpoint_of_another_rank_is_refused(tmp_path: Path) -> None:
    """From rank 1 to 2 a copy would go through, by broadcasting."""
    store = CheckpointStore(str(tmp_path))
    run_steps(Trainer(_Wide(1), CONFIG), _batches, LOOP, store=store)
    other = Trainer(_Wide(2), CONFIG)
    with pytest.raises(ConfigError, match=r"up of shape \(1, 1\), this stage \(1, 2\)"):
        resume(other, store)
    assert torch.equal(other.module.up.detach(), torch.ones(1, 2))


def test_the_optimizers_settings_may_change_on_the_way(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    run_steps(Trainer(_Line(), CONFIG), _batches, LOOP, store=store)
    changed = dataclasses.replace(CONFIG, weight_decay=0.5, betas=(0.5, 0.6))
    again = Trainer(_Line(), changed)
    assert resume(again, store)
    (group,) = again.optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.5, 0.6))
    assert int(again.optimizer.state_dict()["state"][0]["step"]) == 9


class _Group:
    """Stands for the process group of one of two workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, told: object = None) -> None:
        self.told = told
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "broadcast_object_list", self._tell if rank == 0 else self._hear)

    def _tell(self, objects: list, **_: object) -> None:
        self.told = objects[0]

    def _hear(self, objects: list, **_: object) -> None:
        objects[0] = self.told


def _two_checkpoints(folder: Path) -> CheckpointStore:
    store = CheckpointStore(str(folder))
    run_steps(Trainer(_Line(), CONFIG), _batches, LOOP, store=store)
    assert store.steps() == [8, 9]
    return store


def test_worker_0_chooses_the_step_and_the_others_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _two_checkpoints(tmp_path)
    store.put_bytes("step-00000009.pt", b"half")
    first = _Group(monkeypatch, 0)
    assert resume_together(Trainer(_Line(), CONFIG), store)
    assert first.told == 8
    # This worker would have found the newer one whole.
    other = _two_checkpoints(tmp_path / "other")
    _Group(monkeypatch, 1, told=8)
    trainer = Trainer(_Line(), CONFIG)
    assert resume_together(trainer, other)
    assert trainer.step == 8
    _Group(monkeypatch, 1, told=None)
    assert not resume_together(Trainer(_Line(), CONFIG), other)


def test_a_worker_that_sees_another_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Group(monkeypatch, 1, told=7)
    with pytest.raises(ConfigError, match=r"step 7.*--output must be seen by all workers"):
        resume_together(Trainer(_Line(), CONFIG), _two_checkpoints(tmp_path))


def test_nobody_waits_for_a_worker_0_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path))
    store.put_bytes("step-00000009.pt", b"half")
    first = _Group(monkeypatch, 0)
    with pytest.raises(WeightsError, match="no readable checkpoint"):
        resume_together(Trainer(_Line(), CONFIG), store)
    _Group(monkeypatch, 1, told=first.told)
    with pytest.raises(WeightsError, match=r"worker 0 found no checkpoint.*no readable"):
        resume_together(Trainer(_Line(), CONFIG), store)


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    trainer = Trainer(_Line(), CONFIG, step=9)
    run_steps(trainer, _batches, LOOP, store=CheckpointStore(str(tmp_path)))
    assert float(trainer.module.slope.detach()) == 0
    assert CheckpointStore(str(tmp_path)).steps() == []


def test_training_mode_comes_back_even_after_an_error() -> None:
    module = _Line().eval()
    with evaluating(module):
        assert not module.training
    assert not module.training, "it was not on before"


def test_seeds_differ_by_every_part_and_never_by_process() -> None:
    assert seed_of(0, "noise", 5) == 1225939492270646562
    others = [seed_of(0, "noise", 6), seed_of(1, "noise", 5), seed_of(0, "crops", 5), seed_of(5)]
    assert len({seed_of(0, "noise", 5), *others}) == 5


@pytest.mark.parametrize("name", ["num_steps", "log_every", "evaluate_every", "save_every"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        LoopConfig(**({"num_steps": 1} | {name: 0}))
