"""The judges' networks: what goes in and out, and that the shipped weights are whole."""

from __future__ import annotations

from importlib import resources

import torch

from musev.quality.networks import (
    NUM_JOINTS,
    PARTS,
    WEIGHTS,
    joint_features,
    load_action_net,
    load_people_net,
)
from musev.synthetic.people import ACTIONS


def test_maps_have_a_cell_for_every_four_pixels() -> None:
    joints, parts, seen = load_people_net()(torch.rand(2, 3, 128, 128))
    assert joints.shape == (2, NUM_JOINTS, 32, 32)
    assert parts.shape == (2, len(PARTS), 32, 32)
    assert seen.shape == (2, NUM_JOINTS)


def test_an_action_does_not_depend_on_where_the_person_stands() -> None:
    points = torch.rand(1, 12, NUM_JOINTS, 2) * 0.3 + 0.3
    seen = torch.ones(1, 12, NUM_JOINTS)
    here = load_action_net()(joint_features(points, seen))
    there = load_action_net()(joint_features(points + torch.tensor([0.2, -0.1]), seen))
    assert here.shape == (1, len(ACTIONS))
    assert torch.allclose(here, there, atol=1e-3)


def test_unseen_joints_are_not_read() -> None:
    points = torch.rand(1, 12, NUM_JOINTS, 2)
    seen = torch.ones(1, 12, NUM_JOINTS)
    seen[..., 4] = 0
    moved = points.clone()
    moved[..., 4, :] += 0.4
    assert torch.equal(joint_features(points, seen), joint_features(moved, seen))


def test_the_shipped_weights_are_small_and_evaluated_without_gradients() -> None:
    folder = resources.files("musev.quality")
    assert sum(len(folder.joinpath(name).read_bytes()) for name in WEIGHTS.values()) < 400_000
    for network in (load_people_net(), load_action_net()):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
