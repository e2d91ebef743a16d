"""Words that stand for learnt vectors (textual inversion): their files, and where they go.

A word is found in a prompt wherever its letters stand, with their case and inside other words; the
longest word wins. Further vectors of one file can also be written out by hand, as ``word_1`` and so
on (the original's own names for them).

Axes here: L vector, D embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from musev.errors import WeightsError
from musev.weights import load_values


@dataclass(frozen=True)
class Words:
    """Learnt words and the rows of the text encoder's table that they stand for."""

    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def split(self, text: str) -> list[str | tuple[int, ...]]:
        """Split a text into plain stretches and the rows of the words between them."""
        if not self.ids:
            return [text]
        found: list[str | tuple[int, ...]] = []
        end = 0
        for match in self._pattern.finditer(text):
            found += [text[end : match.start()], self.ids[match[0]]]
            end = match.end()
        return [*found, text[end:]]

    @property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))


def read_vectors(path: str | Path) -> Tensor:
    """Read the vectors of an embedding file.

    Args:
        path: A1111's ``.pt``, a ``{word: vector}`` file, or ``.safetensors`` with ``emb_params``.

    Returns:
        ``vectors_LD``, float32.

    Raises:
        WeightsError: If the file is of another kind.
    """
    values = load_values(path)
    held = values.get("string_to_param", values)
    if "emb_params" in held:
        held = {"emb_params": held["emb_params"]}
    tensors = [value for value in dict(held).values() if isinstance(value, Tensor)]
    if len(tensors) != 1 or tensors[0].ndim not in (1, 2):
        raise WeightsError(
            f"embedding {path}: holds {len(tensors)} tensors ({', '.join(map(str, held))}); a "
            "textual inversion of Stable Diffusion 1.5 holds one, of vectors"
        )
    return tensors[0].detach().float().reshape(-1, tensors[0].shape[-1]).clone()


def add_words(
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    words: Mapping[str, Tensor],
    *,
    first_only: bool = False,
) -> Words:
    """Put vectors behind the rows of a text encoder's table, in the order given.

    Args:
        text_encoder: Changed in place.
        tokenizer: Its tokenizer, whose words cannot be taken.
        words: ``vectors_LD`` by word.
        first_only: A word stands for its first vector only, as in the original.

    Returns:
        The words.

    Raises:
        WeightsError: If a word is taken, or vectors are of another width.
    """
    table = text_encoder.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    first = table.num_embeddings
    ids: dict[str, tuple[int, ...]] = {}
    vocabulary = tokenizer.get_vocab()
    for word, vectors_LD in words.items():
        if vectors_LD.shape[1] != table.embedding_dim:
            raise WeightsError(
                f"embedding {word!r} has vectors of {vectors_LD.shape[1]} numbers, but the text "
                f"encoder's have {table.embedding_dim}. Is it made for Stable Diffusion 1.5?"
            )
        rows = tuple(range(first, first + len(vectors_LD)))
        first += len(vectors_LD)
        named = {word: rows[:1] if first_only else rows}
        named |= {f"{word}_{place}": (row,) for place, row in enumerate(rows) if place}
        for name in named:
            if name in vocabulary or name in ids:
                raise WeightsError(
                    f"embedding {word!r}: {name!r} is a word already. Choose another name for it."
                )
        ids |= named
    _append_rows(text_encoder, table, list(words.values()))
    return Words(ids)


@torch.no_grad()
def _append_rows(
    text_encoder: CLIPTextModel, table: nn.Embedding, vectors: Sequence[Tensor]
) -> None:
    old = table.weight
    joined = torch.cat([old.data, *(rows.to(old.device, old.dtype) for rows in vectors)])
    grown = nn.Embedding.from_pretrained(joined, freeze=True, padding_idx=table.padding_idx)
    text_encoder.set_input_embeddings(grown)
    text_encoder.config.vocab_size = len(joined)
