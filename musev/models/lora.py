"""LoRA files merged into weights, as pure functions: values in, changed values out.

Nothing is merged in place: the caller keeps the weights it had, which is how a merge is undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from musev.errors import WeightsError
from musev.lora_choice import BLOCK_PRESETS
from musev.models.lora_files import TEXT_PREFIX, UNET_PREFIX, LoraPair, LoraPairs, lora_pairs
from musev.weights import kohya_names

_BLOCKS = (
    "text",
    *(f"down_blocks.{level}.attentions.{layer}" for level in (0, 1, 2) for layer in (0, 1)),
    "mid_block.attentions.0",
    *(f"up_blocks.{level}.attentions.{layer}" for level in (1, 2, 3) for layer in (0, 1, 2)),
)
_TEXT_PREFIXES = (f"{TEXT_PREFIX}text_model_", TEXT_PREFIX)


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
    targets = _resolve(lora_pairs(lora), kohya_names(weights, UNET_PREFIX), weights)
    return {key: alpha * pair.product() for key, pair in targets.items()}


def kohya_block_deltas(
    lora: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    alpha: float,
    preset: str = "ALL",
    text_encoder: bool = False,
) -> dict[str, Tensor]:
    """Changes of a file as the original's pipeline merges it; see :func:`block_deltas`.

    Args:
        lora: Contents of the file, for U-Net and text encoder.
        weights: Weights of the network that is changed.
        alpha: Strength of the whole file.
        preset: Name in :data:`BLOCK_PRESETS`, any case.
        text_encoder: Whether ``weights`` are the text encoder's.

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
    pairs = lora_pairs(lora)
    return block_deltas(pairs, weights, strength=alpha, blocks=blocks, text_encoder=text_encoder)


def block_deltas(
    pairs: LoraPairs,
    weights: Mapping[str, Tensor],
    *,
    strength: float,
    blocks: Sequence[float],
    text_encoder: bool = False,
    rounded: bool = True,
    reads_alpha: bool = True,
) -> dict[str, Tensor]:
    """Changes of a file, scaled by its own numbers and by a weight for each block.

    Modules outside the attention blocks always count fully.

    Args:
        pairs: Of the file, for U-Net and text encoder.
        weights: Weights of the network that is changed.
        strength: Of the whole file.
        blocks: Factors of the text encoder and of the 16 attention blocks.
        text_encoder: ``weights`` are the text encoder's; the U-Net's entries are left out then, and
            the other way round.
        rounded: Round changes to half precision before the block weight, as the original does.
        reads_alpha: Multiply by the file's alpha over the rank.

    Returns:
        Changes by the network's keys, float32; those of blocks with weight 0 are left out. A module
        that the network does not have is a :class:`WeightsError`.
    """
    mine = {name: pair for name, pair in pairs.items() if _is_text(name) == text_encoder}
    names = _text_names(weights) if text_encoder else kohya_names(weights, UNET_PREFIX)
    deltas = {}
    for key, pair in _resolve(mine, names, weights).items():
        factor = blocks[0] if text_encoder else _block_factor(key, blocks)
        if factor:
            alpha = pair.alpha if reads_alpha else None
            scale = strength * (1.0 if alpha is None else alpha / pair.rank)
            delta = scale * pair.product()
            deltas[key] = factor * (delta.half().float() if rounded else delta)
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

    Raises:
        WeightsError: If a key is none of a motion LoRA.

    Source:
        Upstream convert_motion_lora (MODELS.md section 5).
    """
    for key in lora:
        if not key.endswith(("_lora.down.weight", "_lora.up.weight")):
            raise WeightsError(f"motion LoRA key {key!r} ends neither in _lora.down nor _lora.up")
    return kohya_deltas(lora, weights, alpha=alpha)


def _resolve(
    pairs: Mapping[str, LoraPair], names: Mapping[str, str], weights: Mapping[str, Tensor]
) -> dict[str, LoraPair]:
    """Pairs by the key of the weight they change, shapes checked."""
    targets = {}
    for module, pair in pairs.items():
        if module not in names:
            raise WeightsError(
                f"LoRA module {module!r} does not exist in the network. Is the file made for "
                "Stable Diffusion 1.5?"
            )
        key = names[module]
        shape = (pair.up.shape[0], *pair.down.shape[1:])
        ranks = (pair.up.flatten(1).shape[1], pair.down.shape[0])
        if not _fits(weights[key].shape, shape) or ranks[0] != ranks[1]:
            raise WeightsError(
                f"LoRA module {module!r} changes a weight of shape {list(shape)} (ranks {ranks}), "
                f"but {key} has {list(weights[key].shape)}"
            )
        targets[key] = LoraPair(
            pair.down.reshape(pair.rank, *weights[key].shape[1:]), pair.up, pair.alpha
        )
    return targets


def _fits(weight: Sequence[int], change: Sequence[int]) -> bool:
    """Whether shapes agree; a 1x1 convolution may be told as a linear layer and back."""
    ones = {(): (), (1, 1): ()}
    return tuple(weight[:2]) == tuple(change[:2]) and ones.get(
        tuple(weight[2:]), weight[2:]
    ) == ones.get(tuple(change[2:]), change[2:])


def _is_text(module: str) -> bool:
    return "text" in module or module.startswith(TEXT_PREFIX)


def _text_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Files say ``text_model``; the network's keys do or not, by version of transformers."""
    names: dict[str, str] = {}
    for prefix in _TEXT_PREFIXES:
        names |= kohya_names(weights, prefix)
    return names


def _block_factor(key: str, blocks: Sequence[float]) -> float:
    num_parts = 3 if key.startswith("mid_block") else 4
    block = ".".join(key.split(".")[:num_parts])
    return blocks[_BLOCKS.index(block)] if block in _BLOCKS else 1.0
