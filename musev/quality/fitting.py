"""Fit the judges' networks on drawn people: ``python -m musev.quality.fitting --help``.

The command that made the shipped weights stands in ``docs/judges.md``. The people network's state
is saved as it goes, so a run that was stopped goes on when it is started again. Axes as in
:mod:`musev.quality.networks`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from musev.quality.networks import (
    CELL_PX,
    SIDE_PX,
    WEIGHTS,
    ActionNet,
    PeopleNet,
    joint_features,
)
from musev.quality.samples import (
    MIRRORED,
    Pictures,
    draw_pictures,
    draw_skeletons_of,
    find_skeletons_of,
    vary_picture,
)

logger = logging.getLogger(__name__)

_BATCH = 32
_TARGET_SIGMA_CELLS = 0.9
_PART_WEIGHTS = torch.tensor([0.5, 1.5, 2.0, 1.0, 1.0])
"""Other, skin, hair, shirt, trousers: hair is a few cells of a thousand."""


def people_loss(network: PeopleNet, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy of joints over cells, of parts within cells, and of joints being seen.

    Args:
        network: The network.
        batch: Pictures 0 to 1, points in pixels, seen, part shares, and whether joints are known.

    Returns:
        A scalar.
    """
    pictures_BCYX, points_BJ2, seen_BJ, parts_BPHW, posed_B = batch
    joints_BJHW, part_logits, seen_logits = network(pictures_BCYX)
    cells = torch.arange(SIDE_PX // CELL_PX, dtype=torch.float32)
    centre = (points_BJ2 + 0.5) / CELL_PX - 0.5
    across, down = (
        torch.exp(-0.5 * ((cells - centre[..., axis, None]) / _TARGET_SIGMA_CELLS) ** 2)
        for axis in (0, 1)
    )
    target = (down[..., :, None] * across[..., None, :]).flatten(2)
    target = target / target.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    entropy = -(target * functional.log_softmax(joints_BJHW.flatten(2), dim=-1)).sum(dim=-1)
    joints = (entropy * seen_BJ).sum() / seen_BJ.sum().clamp(min=1)
    weights = _PART_WEIGHTS[None, :, None, None]
    parts = -(weights * parts_BPHW * functional.log_softmax(part_logits, dim=1)).sum(dim=1).mean()
    unsure = functional.binary_cross_entropy_with_logits(seen_logits, seen_BJ, reduction="none")
    return joints + 4 * parts + (unsure.mean(dim=1) * posed_B).mean()


def people_batch(pictures: Pictures, random: np.random.Generator) -> tuple[Tensor, ...]:
    """Draw a batch of varied pictures, as :func:`people_loss` takes it."""
    numbers = random.integers(0, len(pictures.frames_NYXC), _BATCH)
    varied = [vary_picture(pictures, number, random) for number in numbers]
    images, points, seen, parts = (np.stack(column) for column in zip(*varied, strict=True))
    return (
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255,
        torch.from_numpy(points).float(),
        torch.from_numpy(seen).float(),
        torch.from_numpy(parts).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(pictures.posed_N[numbers]).float(),
    )


def fit_people(
    state_path: Path, *, seed: int, num_clips: int, num_steps: int, until_s: float
) -> bool:
    """Fit the joint and part finder, or go on where an earlier run stopped.

    Args:
        state_path: Network, average, optimizer and step, between runs.
        seed: Of clips, of chance and of the first weights.
        num_clips: Drawn clips to learn from.
        num_steps: Steps of 32 pictures in all.
        until_s: Stop after so many seconds, with the state saved.

    Returns:
        Whether all steps are done.
    """
    torch.manual_seed(seed)
    network, average = PeopleNet(), PeopleNet()
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    step = 0
    if state_path.exists():
        state = torch.load(state_path)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    end_s = time.monotonic() + until_s
    pictures = _drawn_once(state_path.with_suffix(".npz"), seed, num_clips)
    random = np.random.default_rng((seed, step))
    while step < num_steps and time.monotonic() < end_s:
        _set_rate(optimizer, 3e-3, step, num_steps)
        loss = people_loss(network, people_batch(pictures, random))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        _follow(average, network, min(0.995, step / (step + 10)))
        if step % 50 == 0:
            logger.info("people: step %d of %d, loss %.3f", step, num_steps, loss.item())
    state = {"network": network.state_dict(), "average": average.state_dict()}
    torch.save({**state, "optimizer": optimizer.state_dict(), "step": step}, state_path)
    return step >= num_steps


def _drawn_once(path: Path, seed: int, num_clips: int) -> Pictures:
    """The pictures, drawn by the first run and kept for the next."""
    if path.exists():
        with np.load(path) as stored:
            return Pictures(**stored)
    pictures = draw_pictures(seed, num_clips)
    np.savez(path, **dataclasses.asdict(pictures))
    return pictures


def fit_actions(*, seed: int, num_clips: int, num_steps: int) -> ActionNet:
    """Fit the action reader on joints that the joint finder found, and on exact ones made worse.

    Found ones alone would be too few clips; exact ones alone lack the finder's habits.

    Args:
        seed: Of clips, of chance and of the first weights.
        num_clips: Drawn clips to find joints in; four times as many give exact joints.
        num_steps: Steps of 96 clips.

    Returns:
        The network.
    """
    torch.manual_seed(seed)
    found = tuple(map(torch.from_numpy, find_skeletons_of(seed, num_clips)))
    exact = tuple(map(torch.from_numpy, draw_skeletons_of(seed + 1, 4 * num_clips)))
    network = ActionNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    for step in range(num_steps):
        _set_rate(optimizer, 3e-3, step, num_steps)
        features, actions = _actions_batch(found, exact)
        loss = functional.cross_entropy(network(features), actions, label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            logger.info("actions: step %d of %d, loss %.3f", step, num_steps, loss.item())
    return network


def _actions_batch(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    features, actions = [], []
    for (points, seen, labels), vary in ((found, _turn_joints), (exact, _vary_joints)):
        numbers = torch.randint(len(points), (48,))
        features.append(joint_features(*vary(points[numbers].float(), seen[numbers])))
        actions.append(labels[numbers])
    return torch.cat(features), torch.cat(actions)


def _turn_joints(points_BTJ2: Tensor, seen_BTJ: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror and resize joints, at random."""
    mirrored = torch.rand(len(points_BTJ2)) < 0.5
    flipped = points_BTJ2[:, :, list(MIRRORED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0])
    points = torch.where(mirrored[:, None, None, None], flipped, points_BTJ2)
    seen = torch.where(mirrored[:, None, None], seen_BTJ[:, :, list(MIRRORED)], seen_BTJ)
    return (points - 0.5) * torch.empty(len(points), 1, 1, 1).uniform_(0.85, 1.1) + 0.5, seen


def _vary_joints(points_BTJ2: Tensor, seen_BTJ: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror, resize and shake joints, and lose some, as a finder would."""
    points, seen = _turn_joints(points_BTJ2, seen_BTJ)
    batch, frames, joints = seen.shape
    shake = torch.empty(batch, 1, 1, 1).uniform_(0.0, 0.012)
    points = points + shake * torch.randn_like(points)
    points = points + 0.006 * torch.randn(batch, 1, joints, 2)
    wild = (torch.rand(batch, frames, joints, 1) < 0.015) * 0.08
    points = points + wild * torch.randn_like(points)
    doubt = torch.empty_like(seen).uniform_(0.0, 0.2)
    lost = torch.rand(batch, frames, joints) < 0.01
    return points, torch.where(lost, doubt, (seen - doubt).abs())


def _set_rate(optimizer: torch.optim.Optimizer, top: float, step: int, num_steps: int) -> None:
    warm = min(1.0, (step + 1) / 50)
    for group in optimizer.param_groups:
        group["lr"] = top * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, keep: float) -> None:
    stored = average.state_dict()
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            stored[key].lerp_(value, 1 - keep)
        else:
            stored[key].copy_(value)


def save_network(network: nn.Module, path: Path) -> None:
    """Write a network's weights in half precision."""
    state = network.state_dict()
    halves = {k: v.half() for k, v in state.items() if v.is_floating_point()}
    save_file(halves | {k: v for k, v in state.items() if k not in halves}, path)


def main(arguments: list[str] | None = None) -> None:
    """Fit what the command line names and write the weights beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=sorted(WEIGHTS))
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--clips", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop and save after this")
    parser.add_argument("--state", type=Path, default=Path("out/quality-people.pt"))
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    target = Path(__file__).parent / WEIGHTS[given.what]
    if given.what == "actions":
        network: nn.Module = fit_actions(
            seed=given.seed, num_clips=given.clips, num_steps=given.steps
        )
    else:
        given.state.parent.mkdir(parents=True, exist_ok=True)
        fit_people(
            given.state,
            seed=given.seed,
            num_clips=given.clips,
            num_steps=given.steps,
            until_s=given.seconds,
        )
        network = PeopleNet()
        network.load_state_dict(torch.load(given.state)["average"])
    save_network(network, target)


if __name__ == "__main__":
    main()
