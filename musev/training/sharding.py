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

_WHOLE = ("text_encoder", "image_encoder", "image_projection", "referencenet", "controlnet")
"""Networks that are gathered as one; the U-Net goes block by block."""


def shard(module: nn.Module) -> None:
    """Spread a diffusion stage's weights over all workers of the process group.

    Weights stay gathered between forward and backward: the U-Net's layers project the prompt's
    keys and values before their block runs, so that there is no one moment to gather a block.
    Gradients are averaged and cut up block by block while the backward pass goes on.

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
    unet = networks["unet"]
    units += [*unet.down_blocks, unet.mid_block, *unet.up_blocks, module]
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
