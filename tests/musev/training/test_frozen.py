"""Patterns decide what learns; one that matches nothing is a slip."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musev.errors import ConfigError
from musev.training.frozen import freeze_except


def _module() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"temporal": nn.Linear(2, 2)}))


def test_exactly_the_matching_parameters_learn() -> None:
    module = _module()
    chosen = freeze_except(module, ["1.*"], but_not=["*.bias"])
    assert chosen == ["1.temporal.weight"]
    learning = {name for name, p in module.named_parameters() if p.requires_grad}
    assert learning == {"1.temporal.weight"}
    freeze_except(module, ["0.*"])
    assert not module[1]["temporal"].weight.requires_grad, "what no longer matches is frozen again"


@pytest.mark.parametrize("patterns", [(["2.*"], []), (["*"], ["temporal.*"])])
def test_a_pattern_that_matches_nothing_is_named(patterns: tuple[list[str], list[str]]) -> None:
    trained, but_not = patterns
    with pytest.raises(ConfigError, match=r"2\.\*|temporal"):
        freeze_except(_module(), trained, but_not=but_not)


def test_a_step_changes_what_learns_and_nothing_else() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze_except(module, ["1.weight"])
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.AdamW(p for p in module.parameters() if p.requires_grad)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"1.weight"}
