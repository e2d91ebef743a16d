"""LoRA files merged into weights, as pure functions: values in, changed values out.

Nothing is merged in place: the caller keeps the weights it had, which is how a merge is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from musev.errors import WeightsError
from musev.weights import kohya_names

# Factors of the text encoder and of the 16 attention blocks of Stable Diffusion 1.5: down blocks
# 0.0 0.1 1.0 1.1 2.0 2.1, middle, up blocks 1.0-1.2 2.0-2.2 3.0-3.2. Upstream, model_util.py.
_PRESET_DIGITS = {
    "FACE": "10000000111000000",
    "DEFACE": "11111111000111111",
    "ALL": "11111111111111111",
    "MIDD": "10001111111100000",
    "OUTALL": "10000000111111111",
}
BLOCK_PRESETS: dict[str, tuple[float, ...]] = {
    name: tuple(map(float, digits)) for name, digits in _PRESET_DIGITS.items()
}
_BLOCKS = (
    "text",
    *(f"down_blocks.{level}.attentions.{layer}" for level in (0, 1, 2) for layer in (0, 1)),
    "mid_block.attentions.0",
    *(f"up_blocks.{level}.attentions.{layer}" for level in (1, 2, 3) for layer in (0, 1, 2)),
)
_TEXT_PREFIXES = ("lora_te_text_model_", "lora_te_")
_UNET_PREFIX = "lora_unet_"


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one change, and the scale the file stores for it."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    def product(self) -> Tensor:
        """``up @ down`` in float32, in the shape of the weight; convolutions included."""
        down, up = self.down.float(), self.up.float()
        flat = up.flatten(1) @ down.flatten(1)
        return flat.reshape(up.shape[0], *down.shape[1:])


def merge_deltas(weights: Mapping[str, Tensor], deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add changes to weights.

    Args:
        weights: The network's weights.
        deltas: Changes by the same keys.

    Returns:
        The changed entries only, in the weights' dtype; loading the old entries undoes the merge.
    """
    return {
        key: (weights[key].float() + delta.to(weights[key].device)).to(weights[key].dtype)
        for key, delta in deltas.items()
    }


def kohya_deltas(
    lora: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, alpha: float = 0.6
) -> dict[str, Tensor]:
    """Changes of a kohya file, scaled by one number; the file's own scales are not read.

    Args:
        lora: Contents of the file.
        weights: The U-Net's weights.
        alpha: The scale.

    Returns:
        Changes by the network's keys, float32.

    Source:
        Upstream convert_lora (MODELS.md section 5).
    """
    targets = _resolve(_kohya_pairs(lora), kohya_names(weights, _UNET_PREFIX), weights)
    return {key: alpha * pair.product() for key, (_, pair) in targets.items()}


def kohya_block_deltas(
    lora: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    alpha: float,
    preset: str = "ALL",
    text_encoder: bool = False,
) -> dict[str, Tensor]:
    """Changes of a kohya file, scaled by the file's own numbers and by a weight for each block.

    Modules outside the attention blocks always count fully.

    Args:
        lora: Contents of the file, for U-Net and text encoder.
        weights: Weights of the network that is changed.
        alpha: Strength of the whole file.
        preset: Name in :data:`BLOCK_PRESETS`, any case.
        text_encoder: ``weights`` are the text encoder's; the U-Net's entries are left out then, and
            the other way round.

    Returns:
        Changes by the network's keys, float32; those of blocks with weight 0 are left out.

    Raises:
        WeightsError: If there is no such preset, a module is unknown or half of a pair is missing.

    Source:
        Upstream update_pipeline_lora_model (ALGORITHM.md 4.2): the change is rounded to half
        precision before the block weight.
    """
    blocks = BLOCK_PRESETS.get(preset.upper())
    if blocks is None:
        raise WeightsError(f"no LoRA block preset {preset!r}; presets: {', '.join(BLOCK_PRESETS)}")
    mine = {key: value for key, value in lora.items() if _is_text(key) == text_encoder}
    names = _text_names(weights) if text_encoder else kohya_names(weights, _UNET_PREFIX)
    deltas = {}
    for key, (_, pair) in _resolve(_kohya_pairs(mine), names, weights).items():
        factor = blocks[0] if text_encoder else _block_factor(key, blocks)
        if factor:
            scale = alpha * (1.0 if pair.alpha is None else pair.alpha / pair.down.shape[0])
            deltas[key] = factor * (scale * pair.product()).half().float()
    return deltas


def motion_deltas(
    lora: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, alpha: float = 1.0
) -> dict[str, Tensor]:
    """Changes of a motion LoRA, whose keys follow the network's own names.

    Args:
        lora: Contents of the file, keys such as ``...attn1.processor.to_q_lora.down.weight``.
        weights: The U-Net's weights.
        alpha: The scale.

    Returns:
        Changes by the network's keys, float32.

    Source:
        Upstream convert_motion_lora (MODELS.md section 5).
    """

    def split(key: str) -> tuple[str, str]:
        for leaf in ("down", "up"):
            if key.endswith(f"_lora.{leaf}.weight"):
                module = key.removesuffix(f"_lora.{leaf}.weight").replace("processor.", "")
                return module + (".0" if module.endswith("to_out") else ""), leaf
        raise WeightsError(f"motion LoRA key {key!r} ends neither in _lora.down nor _lora.up")

    names = {key.removesuffix(".weight"): key for key in weights if key.endswith(".weight")}
    targets = _resolve(_pairs(lora, split), names, weights)
    return {key: alpha * pair.product() for key, (_, pair) in targets.items()}


def _kohya_pairs(lora: Mapping[str, Tensor]) -> dict[str, LoraPair]:
    leaves = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}

    def split(key: str) -> tuple[str, str]:
        module, _, leaf = key.partition(".")
        if leaf not in leaves:
            raise WeightsError(f"LoRA key {key!r} ends in none of {', '.join(leaves)}")
        return module, leaves[leaf]

    return _pairs(lora, split)


def _pairs(
    lora: Mapping[str, Tensor], split: Callable[[str], tuple[str, str]]
) -> dict[str, LoraPair]:
    """Collect the factors of each module; half a pair is an error."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in lora.items():
        module, leaf = split(key)
        parts.setdefault(module, {})[leaf] = value
    for module, found in parts.items():
        for leaf in ("down", "up"):
            if leaf not in found:
                raise WeightsError(
                    f"LoRA module {module!r} has no {leaf} weight; it has {[*found]}"
                )
    return {
        module: LoraPair(
            found["down"], found["up"], float(found["alpha"]) if "alpha" in found else None
        )
        for module, found in parts.items()
    }


def _resolve(
    pairs: Mapping[str, LoraPair], names: Mapping[str, str], weights: Mapping[str, Tensor]
) -> dict[str, tuple[str, LoraPair]]:
    """Pairs by the key of the weight they change, shapes checked."""
    targets = {}
    for module, pair in pairs.items():
        if module not in names:
            raise WeightsError(f"LoRA module {module!r} does not exist in the network")
        key = names[module]
        shape = (pair.up.shape[0], *pair.down.shape[1:])
        ranks = (pair.up.flatten(1).shape[1], pair.down.shape[0])
        if tuple(weights[key].shape) != shape or ranks[0] != ranks[1]:
            raise WeightsError(
                f"LoRA module {module!r} changes a weight of shape {list(shape)} (ranks {ranks}), "
                f"but {key} has {list(weights[key].shape)}"
            )
        targets[key] = (module, pair)
    return targets


def _is_text(key: str) -> bool:
    return "text" in key


def _text_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Files say ``text_model``; the network's keys do or not, by version of transformers."""
    names: dict[str, str] = {}
    for prefix in _TEXT_PREFIXES:
        names |= kohya_names(weights, prefix)
    return names


def _block_factor(key: str, blocks: tuple[float, ...]) -> float:
    num_parts = 3 if key.startswith("mid_block") else 4
    block = ".".join(key.split(".")[:num_parts])
    return blocks[_BLOCKS.index(block)] if block in _BLOCKS else 1.0
