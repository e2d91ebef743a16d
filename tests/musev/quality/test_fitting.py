"""Fitting the judges: a loss that is least at the truth, and runs that go on where they stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from musev.quality import fitting
from musev.quality.networks import ActionNet, PeopleNet
from musev.quality.samples import draw_pictures


def test_the_shipped_network_has_a_lower_loss_than_a_new_one() -> None:
    from musev.quality.networks import load_people_net

    torch.manual_seed(0)
    batch = fitting.people_batch(draw_pictures(6, 4), np.random.default_rng(0))
    with torch.no_grad():
        shipped = fitting.people_loss(load_people_net(), batch)
        fresh = fitting.people_loss(PeopleNet().eval(), batch)
    assert shipped < 0.6 * fresh


def test_joints_that_are_not_known_cost_nothing() -> None:
    batch = list(fitting.people_batch(draw_pictures(6, 2), np.random.default_rng(0)))
    batch[2] = torch.zeros_like(batch[2])
    batch[4] = torch.zeros_like(batch[4])
    moved = [*batch]
    moved[1] = batch[1] + 30
    network = PeopleNet().eval()
    assert torch.equal(fitting.people_loss(network, batch), fitting.people_loss(network, moved))


def test_a_stopped_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_BATCH", 4)
    state = tmp_path / "people.pt"
    settings = {"seed": 1, "num_clips": 2, "until_s": 600.0}
    assert not fitting.fit_people(state, **{**settings, "until_s": 0.0}, num_steps=3)
    assert torch.load(state)["step"] == 0
    assert fitting.fit_people(state, **settings, num_steps=2)
    assert torch.load(state)["step"] == 2
    assert fitting.fit_people(state, **settings, num_steps=3)
    assert torch.load(state)["step"] == 3


def test_actions_are_fitted_and_saved_in_half_precision(tmp_path: Path) -> None:
    network = fitting.fit_actions(seed=1, num_clips=2, num_steps=2)
    assert isinstance(network, ActionNet)
    path = tmp_path / "actions.safetensors"
    fitting.save_network(network, path)
    stored = load_file(path)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert set(stored) == set(network.state_dict())
