"""Weights of the full-size goldens, computed from the parameters' own names (FULLSIZE.md)."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from tests.goldens import GOLDENS


def value_by_rule(name: str, shape: torch.Size, prefix: str = "") -> Tensor:
    """One parameter of the rule ``fullsize-1``."""
    seed = zlib.crc32((prefix + name).encode())
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    leaf = name.rpartition(".")[2]
    if leaf == "temporal_weight":
        return 0.5 + 0.1 * normal
    if len(shape) >= 2:
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        is_fuse = "refer_emb_attns" in name and (".to_q." in name or ".to_k." in name)
        return normal * (scale / 8 if is_fuse else scale)
    return 1 + 0.1 * normal if leaf == "weight" else 0.1 * normal


def fill_by_rule(net: nn.Module, rule: dict[str, Any]) -> None:
    """Replace the meta parameters of a network; the recorded probes are checked first."""
    assert rule["version"] == "fullsize-1"
    prefix = rule["seed_prefix"]
    probes = json.loads((GOLDENS / "models" / rule["probe"]).read_text())
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
    for name, probe in probes["tensors"].items():
        value = value_by_rule(name, shapes[name], prefix)
        assert list(value.shape) == probe["shape"], name
        first = torch.tensor(probe["first"])
        torch.testing.assert_close(value.flatten()[: len(first)], first, rtol=0, atol=1e-6)
    values = {name: value_by_rule(name, shape, prefix) for name, shape in shapes.items()}
    net.load_state_dict(values, assign=True)
