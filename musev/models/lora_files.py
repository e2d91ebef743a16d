"""LoRA files of every common layout, read into pairs of factors by the module they change.

Modules are named as in kohya files: ``lora_unet_`` or ``lora_te_``, then the network's own name
with underscores for dots. Layouts: kohya; diffusers, in all its spellings so far; plain peft.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from musev.errors import WeightsError
from musev.weights import load_state_dict, read_metadata

UNET_PREFIX = "lora_unet_"
TEXT_PREFIX = "lora_te_"
LoraPairs = dict[str, "LoraPair"]


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one change, and the scale the file stores for it."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Columns of the factors."""
        return self.down.shape[0]

    def product(self) -> Tensor:
        """``up @ down`` in float32, in the shape of the weight; convolutions included."""
        down, up = self.down.float(), self.up.float()
        flat = up.flatten(1) @ down.flatten(1)
        return flat.reshape(up.shape[0], *down.shape[1:])


def read_lora(path: str | Path) -> LoraPairs:
    """Read a LoRA file of any layout.

    Args:
        path: The file.

    Returns:
        Pairs by kohya's module name.

    Raises:
        WeightsError: If it is of another kind of adapter, or half of a pair is missing; the file is
            named.
    """
    state = load_state_dict(path)
    try:
        return lora_pairs(state, read_metadata(Path(path)))
    except WeightsError as error:
        raise WeightsError(f"LoRA file {path}: {error}") from error


def lora_pairs(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> LoraPairs:
    """Sort the contents of a LoRA file into pairs.

    Args:
        state: Contents of the file.
        metadata: Its metadata; newer diffusers files tell there what scale they were trained with.

    Returns:
        Pairs by kohya's module name.

    Raises:
        WeightsError: If it is of another kind of adapter, or half of a pair is missing.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        module, leaf = split_key(key)
        parts.setdefault(module, {})[leaf] = value
    scales = _peft_scales(metadata or {})
    pairs = {}
    for module, found in parts.items():
        for leaf in ("down", "up"):
            if leaf not in found:
                raise WeightsError(
                    f"LoRA module {module!r} has no {leaf} weight; it has {[*found]}"
                )
        alpha = float(found["alpha"]) if "alpha" in found else None
        pair = LoraPair(found["down"], found["up"], alpha)
        pairs[module] = pair if alpha is not None else _with_scale(pair, module, scales)
    return pairs


_LEAVES = (
    # kohya; diffusers below 0.22, 0.2x and with peft; plain peft; a named adapter of peft.
    (re.compile(r"(.+)\.lora_(down|up)\.weight"), {"down": "down", "up": "up"}),
    (re.compile(r"(.+)\.lora\.(down|up)\.weight"), {"down": "down", "up": "up"}),
    (re.compile(r"(.+)\.lora_linear_layer\.(down|up)\.weight"), {"down": "down", "up": "up"}),
    (re.compile(r"(.+)_lora\.(down|up)\.weight"), {"down": "down", "up": "up"}),
    (re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight"), {"A": "down", "B": "up"}),
    (re.compile(r"(.+)\.(alpha)"), {"alpha": "alpha"}),
)
_OTHER_ADAPTERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a LoCon with middle factors",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "to_k_ip": "IP-Adapter",
}


def split_key(key: str) -> tuple[str, str]:
    """Split a file's key into the module it changes and what is stored of it.

    Args:
        key: Of any layout.

    Returns:
        Kohya's name of the module, and ``down``, ``up`` or ``alpha``.

    Raises:
        WeightsError: If it belongs to another kind of adapter.
    """
    for mark, kind in _OTHER_ADAPTERS.items():
        if mark in key:
            raise WeightsError(f"key {key!r} belongs to {kind}; only plain LoRA files can be read")
    for pattern, leaves in _LEAVES:
        if found := pattern.fullmatch(key):
            return _kohya_module(found[1]), leaves[found[2]]
    raise WeightsError(
        f"LoRA key {key!r} ends in none of lora_down, lora_up, lora_A, lora_B, alpha"
    )


def _kohya_module(module: str) -> str:
    if module.startswith((UNET_PREFIX, TEXT_PREFIX)):
        return module
    module = module.removeprefix("base_model.model.").replace(".processor.", ".")
    prefix = UNET_PREFIX
    if module.startswith(("text_encoder.", "text_model.")):
        module, prefix = module.removeprefix("text_encoder."), TEXT_PREFIX
    module = module.removeprefix("unet.")
    # Where a layer with dropout behind it is named without its number.
    module += ".0" if module.endswith(".to_out") else ""
    return prefix + module.replace(".", "_")


def _peft_scales(metadata: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Peft's config of each network, as diffusers keeps it in a file's metadata."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        flat = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"lora_adapter_metadata is no JSON ({error})") from error
    configs: dict[str, dict[str, object]] = {}
    for key, value in flat.items():
        network, _, name = key.rpartition(".")
        configs.setdefault(TEXT_PREFIX if "text" in network else UNET_PREFIX, {})[name] = value
    return configs


def _with_scale(pair: LoraPair, module: str, configs: Mapping[str, dict[str, object]]) -> LoraPair:
    prefix = TEXT_PREFIX if module.startswith(TEXT_PREFIX) else UNET_PREFIX
    config = configs.get(prefix, {})
    patterns = config.get("alpha_pattern") or {}
    assert isinstance(patterns, dict)
    own = [
        value
        for name, value in patterns.items()
        if module.endswith(name.replace(".", "_").removeprefix("unet_"))
    ]
    alpha = own[0] if own else config.get("lora_alpha")
    if alpha is None:
        return pair
    scale = float(alpha)  # pyright: ignore[reportArgumentType]
    # Rank-stabilised: divided by the root of the rank instead of the rank.
    scale *= math.sqrt(pair.rank) if config.get("use_rslora") else 1.0
    return LoraPair(pair.down, pair.up, scale)
