"""Networks too large for one GPU: gradients, optimizer, averages and resting weights in shards.

Every worker holds a part of each weight and gathers the whole only while it computes. Checkpoints
hold whole tensors all the same, so that any number of workers, or one process, takes them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from musev.errors import ConfigError
from musev.models.blocks import ResidualLayer
from musev.models.temporal import TemporalConv, TemporalTransformer

_WHOLE = ("text_encoder", "image_encoder", "image_projection", "referencenet")
_LAYERS = (ResidualLayer, TemporalConv, TemporalTransformer)
"""Parts that compute in their forward and nowhere else, so that their gradients are complete when
that is done. Spatial attentions are none: they project the prompt's keys long before."""


def shard(module: nn.Module) -> None:
    """Spread a diffusion stage's weights over all workers of the process group.

    Weights stay gathered between forward and backward. Gradients of convolutions and temporal
    layers are averaged and cut up one by one while the backward pass goes on, all others at its
    end.

    Args:
        module: A :class:`~musev.training.diffusion.DiffusionTraining`, changed in place; what
            learns must be decided, the optimizer and the average not yet made.

    Raises:
        ConfigError: If it is another kind of module.
    """
    networks = getattr(module, "networks", None)
    if networks is None:
        raise ConfigError("only diffusion stages can be sharded; train a VAE with --strategy ddp")
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    units: list[nn.Module] = [networks[name] for name in _WHOLE if name in networks]
    units += [layer for layer in networks["unet"].modules() if isinstance(layer, _LAYERS)]
    units.append(module)
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=False)
    sharded = [unit for unit in units if isinstance(unit, FSDPModule)]

    def gather(_module: nn.Module, _inputs: object) -> None:
        for unit in sharded:
            unit.unshard()

    def finish(_module: nn.Module, _inputs: object, losses: Mapping[str, Tensor]) -> Any:
        if torch.is_grad_enabled():
            return {**losses, "loss": losses["loss"] + _touch(module)}
        for unit in sharded:  # no backward pass comes that would do it
            unit.reshard()
        return losses

    module.register_forward_pre_hook(gather, prepend=True)
    module.register_forward_hook(finish)


def _touch(module: nn.Module) -> Tensor:
    """Zero, with a gradient to everything that learns.

    Workers drop different conditions from their batches. All must still exchange the same
    gradients, or they wait for each other for ever.
    """
    firsts = [p.flatten()[:1] for p in module.parameters() if p.requires_grad]
    return torch.cat(firsts).sum() * 0


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are spread over workers."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def gathered(state: Any) -> Any:
    """Make every tensor of nested dicts and lists whole; all workers must call it together.

    Args:
        state: Of a checkpoint.

    Returns:
        The same, without shards; shards become whole tensors on the CPU.
    """
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {name: gathered(value) for name, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    return state


def spread_like(value: Tensor, pattern: Tensor) -> Tensor:
    """Cut a whole tensor as another one is cut; the pattern may be whole itself.

    Args:
        value: The same on all workers.
        pattern: What it will stand beside.

    Returns:
        This worker's part, as a tensor that is spread like ``pattern``.
    """
    if not isinstance(pattern, DTensor) or value.shape != pattern.shape:
        return value
    value = value.to(pattern.device)
    return distribute_tensor(value, pattern.device_mesh, pattern.placements, src_data_rank=None)
