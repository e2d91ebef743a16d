"""Networks whose LoRA files change from row to row, and from window to window.

A merge makes new tensors beside the network's own, which are never written to: putting the own ones
back undoes it to the bit, however often rows take turns. What has been merged is kept for a while,
so that going back and forth between two rows costs the time of a few hundred pointers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from musev.errors import WeightsError
from musev.lora_choice import LoraFile
from musev.models.lora import block_deltas, merge_deltas
from musev.models.lora_files import TEXT_PREFIX, LoraPair, LoraPairs, read_lora
from musev.weight_parts import hash_file

logger = logging.getLogger(__name__)

KEPT_BYTES = 4 * 2**30
"""Bound on merged weights kept; those of one set of files for SD1.5 take up to 1.7 GB in half
precision."""
Changed = dict[str, Tensor]


class LoraSwitch:
    """Merges LoRA files into a U-Net and its text encoder, and takes them out again.

    Args:
        unet: The video network.
        text_encoder: The text encoder.
        kept_bytes: Bound on merged weights that are kept; the set in use is kept whatever its size.
    """

    def __init__(
        self, unet: nn.Module, text_encoder: nn.Module, *, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._networks = {"unet": unet, "text_encoder": text_encoder}
        self._kept_bytes = kept_bytes
        self._own: dict[str, Changed] = {}
        self._merged: OrderedDict[tuple[object, ...], dict[str, Changed]] = OrderedDict()
        self.in_use: tuple[object, ...] = ()
        """Key of the files that are merged now; empty for none."""
        self.num_merges = 0
        """How often weights were computed; not how often they were switched."""

    def serves(self, unet: nn.Module, text_encoder: nn.Module) -> bool:
        """Whether these are the networks it changes."""
        return self._networks["unet"] is unet and self._networks["text_encoder"] is text_encoder

    def use(self, loras: Sequence[LoraFile] = ()) -> None:
        """Make the networks those of a row.

        Args:
            loras: The row's files, merged in this order; none for the networks' own weights. A file
                that does not fit is a :class:`WeightsError`; the own weights are in use then.
        """
        key = tuple(_key_of(lora) for lora in loras if lora.choice.strength)
        if key == self.in_use:
            return
        self._put(self._own)
        self._own, self.in_use = {}, ()
        if not key:
            return
        if key not in self._merged:
            self._merged[key] = self._merge([lora for lora in loras if lora.choice.strength])
            self.num_merges += 1
        self._merged.move_to_end(key)
        self._own = self._put(self._merged[key])
        self.in_use = key
        self._forget()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _merge(self, loras: Sequence[LoraFile]) -> dict[str, Changed]:
        own = {
            network: {name: parameter.data for name, parameter in net.named_parameters()}
            for network, net in self._networks.items()
        }
        found: dict[str, Changed] = {network: {} for network in own}
        exact: dict[str, Changed] = {network: {} for network in own}
        for lora in loras:
            pairs = _read(lora)
            for network, weights in own.items():
                deltas = _deltas(lora, pairs, network, weights)
                if lora.choice.merge == "exact":
                    _add(exact[network], deltas)
                else:
                    found[network] |= merge_deltas(weights | found[network], deltas)
        return {
            network: found[network] | merge_deltas(weights | found[network], exact[network])
            for network, weights in own.items()
        }

    def _put(self, tensors: Mapping[str, Changed]) -> dict[str, Changed]:
        """Put tensors into the networks; those that were there before are returned."""
        before: dict[str, Changed] = {}
        for network, changed in tensors.items():
            net = self._networks[network]
            before[network] = {}
            for name, tensor in changed.items():
                parameter = net.get_parameter(name)
                before[network][name] = parameter.data
                parameter.data = tensor
        return before

    def _forget(self) -> None:
        def size(changed: Mapping[str, Changed]) -> int:
            return sum(t.nbytes for tensors in changed.values() for t in tensors.values())

        total = sum(map(size, self._merged.values()))
        while total > self._kept_bytes and len(self._merged) > 1:
            _, gone = self._merged.popitem(last=False)
            total -= size(gone)


def _key_of(lora: LoraFile) -> tuple[object, ...]:
    """Everything that decides the merge; not where the file lies."""
    digest = lora.digest or f"sha256:{hash_file(lora.path)}"
    return digest, lora.choice.strength, lora.choice.blocks, lora.choice.merge


def _read(lora: LoraFile) -> LoraPairs:
    try:
        pairs = read_lora(lora.path)
    except WeightsError as error:
        raise WeightsError(f"{lora.choice.file}: {error}") from error
    text = sum(module.startswith(TEXT_PREFIX) for module in pairs)
    counts = f"{len(pairs) - text} modules of the U-Net, {text} of the text encoder"
    logger.info("%s changes %s", lora.choice.file, counts)
    return pairs


def _deltas(
    lora: LoraFile, pairs: LoraPairs, network: str, weights: Mapping[str, Tensor]
) -> Changed:
    choice = lora.choice
    try:
        return block_deltas(
            _on_device(pairs, next(iter(weights.values())).device),
            weights,
            strength=choice.strength,
            blocks=choice.blocks,
            text_encoder=network == "text_encoder",
            rounded=choice.merge != "exact",
            reads_alpha=choice.merge != "upstream_plain",
        )
    except WeightsError as error:
        raise WeightsError(f"LoRA {choice.file}: {error}") from error


def _add(total: Changed, deltas: Mapping[str, Tensor]) -> None:
    for name, delta in deltas.items():
        total[name] = total[name] + delta if name in total else delta


def _on_device(pairs: LoraPairs, device: torch.device) -> LoraPairs:
    return {
        module: LoraPair(pair.down.to(device), pair.up.to(device), pair.alpha)
        for module, pair in pairs.items()
    }
