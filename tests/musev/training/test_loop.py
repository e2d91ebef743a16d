"""The loop: what it calls when, and that a resumed run has the bits of one that never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from musev.errors import ConfigError
from musev.training.checkpoints import CheckpointStore
from musev.training.loop import (
    Hooks,
    LoopConfig,
    Trainer,
    evaluating,
    resume,
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
    assert saved == store.steps() == [2, 4, 6, 8, 9]
    kinds = ["grad_norm", "learning_rate", "loss", "seconds_per_step"]
    assert [step for step, names in logged if names == kinds] == [2, 4, 6, 8, 9]
    assert [step for step, names in logged if names == ["score"]] == [3, 6, 9]
    assert trainer.module.training
    assert not torch.equal(trainer.module.slope, trainer.ema.averages["slope"])


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
