"""Low-rank factors beside frozen weights, learnt in place and written as a kohya file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class LowRank(nn.Module):
    """``weight + up @ down``; up starts at zero, so that nothing changes at first.

    Args:
        weight: The weight that is changed.
        rank: Columns of the factors.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        return weight + self.up @ self.down


def add_lora(
    network: nn.Module,
    rank: int,
    *,
    layers: Sequence[str] = ATTENTION_PROJECTIONS,
    within: str = ".attentions.",
) -> list[str]:
    """Put low-rank factors beside linear layers.

    Args:
        network: Changed in place; its own parameters become frozen.
        rank: Of the factors.
        layers: Ends of the names of layers.
        within: A part of the names; by default spatial attentions, not temporal ones.

    Returns:
        Names of the layers.
    """
    network.requires_grad_(False)
    chosen = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and within in name and name.endswith(tuple(layers))
    ]
    for name in chosen:
        layer = network.get_submodule(name)
        # Through the layer's own weight, so that its code need not know; unsafe skips one forward
        # that checks shapes, which are right by construction.
        parametrize.register_parametrization(
            layer, "weight", LowRank(layer.weight, rank), unsafe=True
        )
    return chosen


@torch.no_grad()
def export_kohya(network: nn.Module, *, prefix: str = "lora_unet_") -> dict[str, Tensor]:
    """The factors in the layout of a kohya file.

    Args:
        network: With factors from :func:`add_lora`.
        prefix: Of all keys.

    Returns:
        ``lora_down.weight``, ``lora_up.weight`` and ``alpha`` (the rank: scale 1) of every layer;
        ``musev.models.lora.kohya_deltas`` with alpha 1 gives back what was learnt.
    """
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            layer = name.removesuffix(".parametrizations.weight.0")
            key = prefix + layer.replace(".", "_")
            found[f"{key}.lora_down.weight"] = module.down.detach().clone()
            found[f"{key}.lora_up.weight"] = module.up.detach().clone()
            found[f"{key}.alpha"] = torch.tensor(float(module.down.shape[0]))
    return found


def remove_lora(network: nn.Module) -> None:
    """Take the factors out again; the weights are what they were before."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
