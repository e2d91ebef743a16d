"""Two small networks that read drawn people: joints and parts in a picture, an action over time.

Axes here: B picture or clip, C channel, T frame, J joint (OpenPose body 18), P part, Y X pixel rows
and columns, H W cells of :data:`CELL_PX` pixels.
"""

from __future__ import annotations

import functools
from importlib import resources

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from musev.synthetic.people import ACTIONS

SIDE_PX = 128
"""Pictures are brought to this size before they are read."""
CELL_PX = 4
NUM_JOINTS = 18
PARTS = ("other", "skin", "hair", "shirt", "trousers")
WEIGHTS = {"people": "people.safetensors", "actions": "actions.safetensors"}


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class PeopleNet(nn.Module):
    """Joint maps, part maps and which joints are in the picture; about 125,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 2)
        self.quarter = nn.Sequential(_conv(16, 24, 2), _conv(24, 24))
        self.eighth = nn.Sequential(_conv(24, 40, 2), _conv(40, 40))
        self.sixteenth = nn.Sequential(_conv(40, 48, 2), _conv(48, 48))
        self.bottom = _conv(48, 48, 2)
        self.up_sixteenth = _conv(48, 40)
        self.up_eighth = _conv(40, 24)
        self.up_quarter = nn.Sequential(nn.Conv2d(48, 28, 1), _conv(28, 28))
        self.maps = nn.Conv2d(28, NUM_JOINTS + len(PARTS), 1)
        self.seen = nn.Linear(96, NUM_JOINTS)

    def forward(self, pictures_BCYX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read pictures.

        Args:
            pictures_BCYX: float32 RGB, 0 to 1, 128 by 128 pixels.

        Returns:
            ``(joints_BJHW, parts_BPHW, seen_BJ)``: logits over cells for each joint, over parts for
            each cell, and of each joint being in the picture and turned to the camera.
        """
        quarter = self.quarter(self.stem(2 * pictures_BCYX - 1))
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        bottom = self.bottom(sixteenth)
        pooled = torch.cat([sixteenth.mean(dim=(2, 3)), bottom.amax(dim=(2, 3))], dim=1)
        wide = self.up_sixteenth(sixteenth + _twice(bottom))
        wide = self.up_eighth(eighth + _twice(wide))
        maps = self.maps(self.up_quarter(torch.cat([quarter, _twice(wide)], dim=1)))
        return maps[:, :NUM_JOINTS], maps[:, NUM_JOINTS:], self.seen(pooled)


def _twice(maps_BCHW: Tensor) -> Tensor:
    return functional.interpolate(maps_BCHW, scale_factor=2, mode="nearest")


class ActionNet(nn.Module):
    """What is done, from joints over about a second and a half; about 17,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3 * NUM_JOINTS, 48, 3, padding=1)
        self.second = nn.Conv1d(48, 48, 3, padding=1)
        self.last = nn.Linear(96, len(ACTIONS))
        self.drop = nn.Dropout(0.1)

    def forward(self, joints_BCT: Tensor) -> Tensor:
        """Read joints over time.

        Args:
            joints_BCT: From :func:`joint_features`.

        Returns:
            ``logits_BA`` over :data:`musev.synthetic.people.ACTIONS`.
        """
        hidden = torch.relu(self.second(torch.relu(self.first(joints_BCT))))
        pooled = torch.cat([hidden.mean(dim=2), hidden.amax(dim=2)], dim=1)
        return self.last(self.drop(pooled))


def joint_features(points_BTJ2: Tensor, seen_BTJ: Tensor) -> Tensor:
    """Joints as the action network reads them: away from the neck's usual place, unseen ones 0.

    Args:
        points_BTJ2: Joints as shares of the picture's shorter side.
        seen_BTJ: 0 to 1, whether each joint is seen.

    Returns:
        ``joints_BCT``: x, y and seen of every joint.
    """
    middle_B112 = points_BTJ2[:, :, 1:2].median(dim=1, keepdim=True).values
    offset = (points_BTJ2 - middle_B112).clamp(-1, 1) * 3 * seen_BTJ[..., None]
    return torch.cat([offset[..., 0], offset[..., 1], seen_BTJ - 0.5], dim=2).transpose(1, 2)


@functools.cache
def load_people_net() -> PeopleNet:
    """Load the joint and part finder that ships with the package."""
    return _load(PeopleNet(), "people")


@functools.cache
def load_action_net() -> ActionNet:
    """Load the action reader that ships with the package."""
    return _load(ActionNet(), "actions")


def _load(network: nn.Module, name: str) -> nn.Module:
    stored = resources.files("musev.quality").joinpath(WEIGHTS[name]).read_bytes()
    network.load_state_dict({key: value.float() for key, value in load(stored).items()})
    return network.eval().requires_grad_(False)
