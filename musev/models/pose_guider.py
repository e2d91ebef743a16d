"""A pose guider from its folder, or from a bare file whose sizes are read off its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from musev.errors import WeightsError
from musev.models.control import PoseGuider
from musev.models.loading import build_empty, fill, load_net
from musev.weights import load_state_dict


def load_pose_guider(path: Path, *, dtype: torch.dtype) -> PoseGuider:
    """Load a pose guider.

    Args:
        path: A diffusers folder, or a file of weights alone.
        dtype: Of the network.

    Returns:
        The network, frozen, on the CPU.

    Raises:
        WeightsError: If files are missing or belong to another network.
    """
    where = "pose_guider"
    if path.is_dir():
        return load_net(PoseGuider, path, dtype=dtype, where=where)
    state = load_state_dict(path)
    if "conv_in.weight" not in state or "conv_out.weight" not in state:
        raise WeightsError(f"{where}: {path} holds no pose guider (no conv_in and conv_out)")
    num_blocks = sum(key.startswith("blocks.") and key.endswith(".weight") for key in state)
    widths = [state["conv_in.weight"].shape[0]]
    widths += [state[f"blocks.{number}.weight"].shape[0] for number in range(1, num_blocks, 2)]
    config = {
        "conditioning_embedding_channels": state["conv_out.weight"].shape[0],
        "conditioning_channels": state["conv_in.weight"].shape[1],
        "block_out_channels": tuple(widths),
    }
    net = build_empty(PoseGuider, config, where=f"{where} at {path}")
    return fill(net, state, dtype=dtype, where=f"{where} at {path}")
