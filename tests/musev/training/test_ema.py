"""The average: its formula, its quick start, and that it comes and goes without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musev.training.ema import Ema


def _layer(*, frozen_bias: bool = False) -> nn.Linear:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(not frozen_bias)
    return layer


def test_averages_follow_the_formula_and_forget_the_start_soon() -> None:
    layer, decay = _layer(), 0.5
    ema = Ema(layer, decay=decay)
    expected = layer.weight.detach().clone()
    for number in range(1, 20):
        with torch.no_grad():
            layer.weight.fill_(number)
        ema.update(layer)
        rate = min(decay, (1 + number) / (10 + number))
        expected = rate * expected + (1 - rate) * number
        torch.testing.assert_close(ema.averages["weight"], expected)
    assert 17 < float(ema.averages["weight"].mean()) < 19


def test_only_what_learns_is_followed() -> None:
    layer = _layer(frozen_bias=True)
    assert Ema(layer, decay=0.9).averages.keys() == {"weight"}


def test_applied_averages_leave_the_weights_as_they_were() -> None:
    layer = _layer()
    ema = Ema(layer, decay=0.9)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with torch.no_grad():
        ema.averages["weight"].fill_(7)

    def fail_inside() -> None:
        with ema.applied(layer):
            assert torch.equal(layer.weight, torch.full((2, 2), 7.0))
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


def test_a_saved_average_goes_on_where_it_was() -> None:
    first = _layer()
    ema = Ema(first, decay=0.9)
    for value in (1.0, 2.0):
        first.weight.data.fill_(value)
        ema.update(first)
    saved = {"num_updates": ema.num_updates, "averages": dict(ema.averages)}
    again = Ema(_layer(), decay=0.9)
    again.load_state_dict(saved)
    for each in (ema, again):
        each.update(first)
    assert again.num_updates == 3
    assert torch.equal(again.averages["weight"], ema.averages["weight"])
