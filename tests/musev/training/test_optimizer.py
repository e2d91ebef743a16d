"""Learning rates, what decays, and updates from many small batches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musev.errors import ConfigError, MusevError
from musev.training.optimizer import (
    Batch,
    Losses,
    OptimizerConfig,
    learning_rate_at,
    make_optimizer,
    update,
)

CONFIG = OptimizerConfig(learning_rate=1.0, warmup_steps=10, end_ratio=0.1)


def test_the_rate_rises_straight_and_falls_like_a_cosine() -> None:
    rates = [learning_rate_at(CONFIG, step, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx((1.0 + 0.1) / 2)  # half way between largest and end
    assert rates[110] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate_at(CONFIG, 500, 110) == pytest.approx(0.1)


def test_a_run_shorter_than_its_warm_up_has_rates_too() -> None:
    assert learning_rate_at(CONFIG, 1, 2) == pytest.approx(0.2)
    assert learning_rate_at(OptimizerConfig(warmup_steps=0), 0, 1) == pytest.approx(1e-3)


def test_only_matrices_decay_and_frozen_weights_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    module[1].weight.requires_grad_(False)
    optimizer = make_optimizer(module, CONFIG)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {id(module[0].weight): 0.01, id(module[0].bias): 0.0, id(module[1].bias): 0.0}


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(nn.Linear(1, 1).requires_grad_(False), CONFIG)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"max_grad_norm": -1.0},
        {"ema_decay": 2.0},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)


class _Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))

    def forward(self, batch: Batch) -> Losses:
        error: Tensor = ((batch["x"] * self.weight - 1) ** 2).mean()
        return {"loss": error}


def _updated(batches: list[Batch], *, max_grad_norm: float = 1e9) -> tuple[Tensor, dict]:
    module = _Squares()
    optimizer = make_optimizer(module, CONFIG)
    metrics = update(module, batches, optimizer, learning_rate=0.1, max_grad_norm=max_grad_norm)
    assert module.weight.grad is not None
    return module.weight.grad.clone(), metrics


def test_accumulation_equals_one_large_batch() -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    whole, metrics = _updated([{"x": x}])
    parts, by_parts = _updated([{"x": part} for part in x.chunk(3)])
    torch.testing.assert_close(parts, whole)
    assert by_parts["loss"] == pytest.approx(metrics["loss"])
    assert by_parts["grad_norm"] == pytest.approx(metrics["grad_norm"])


def test_long_gradients_are_shortened_and_their_length_is_told() -> None:
    batch = {"x": torch.full((1, 2), 3.0)}
    free, metrics = _updated([batch])
    short, _ = _updated([batch], max_grad_norm=0.5)
    assert metrics["grad_norm"] == pytest.approx(float(free.norm()))
    assert float(short.norm()) == pytest.approx(0.5, rel=1e-4)


def test_workers_exchange_gradients_at_the_last_batch_only() -> None:
    module, entered = _Squares(), []

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        entered.append(module.weight.grad is None)
        yield

    batches = [{"x": torch.ones(1, 2)}] * 3
    optimizer = make_optimizer(module, CONFIG)
    update(module, batches, optimizer, learning_rate=0.1, max_grad_norm=1.0, no_sync=no_sync)
    assert len(entered) == 2


def test_a_loss_that_is_no_number_stops_before_anything_changes() -> None:
    module = _Squares()
    before = module.weight.detach().clone()
    optimizer = make_optimizer(module, CONFIG)
    batch = {"x": torch.full((1, 2), float("nan"))}
    with pytest.raises(MusevError, match="lower learning rate"):
        update(module, [batch], optimizer, learning_rate=0.1, max_grad_norm=1.0)
    assert torch.equal(module.weight, before)


def test_an_update_from_nothing_is_an_error() -> None:
    module = nn.Linear(1, 1)
    optimizer = make_optimizer(module, CONFIG)
    with pytest.raises(MusevError, match="at least one batch"):
        update(lambda batch: batch, [], optimizer, learning_rate=1.0, max_grad_norm=1.0)
