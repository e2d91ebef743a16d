"""A small CLIP tokenizer for a closed vocabulary: every known word is one token.

Other words still work: they fall apart into known pieces and single bytes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer

_END = "</w>"
# Signs that prompts hold beside words; alone they are a token of their own already.
START, STOP = "<|startoftext|>", "<|endoftext|>"


def make_word_tokenizer(words: Iterable[str], *, max_length: int) -> CLIPTokenizer:
    """Build the tokenizer of a vocabulary.

    Args:
        words: Lower-case words without spaces.
        max_length: Tokens of a prompt, start and end included.

    Returns:
        CLIP's byte-pair tokenizer whose merges end at the words.
    """
    merges = learn_merges(sorted(set(words)))
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(symbol + _END for symbol in symbols)]
    tokens += dict.fromkeys(first + second for first, second in merges)
    vocab = {token: number for number, token in enumerate([*tokens, START, STOP])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Learn byte pairs until every word is a single token.

    Args:
        words: Each counts once.

    Returns:
        Pairs in the order in which they are merged: the most frequent first, ties by the alphabet.
    """
    pieces = [[*word[:-1], word[-1] + _END] for word in words if word]
    merges = []
    while any(len(word) > 1 for word in pieces):
        counts = Counter(pair for word in pieces for pair in itertools.pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token numbers as ``encode_prompts`` lays them out for one chunk; longer captions are cut.

    Args:
        tokenizer: Of the text encoder.
        captions: Plain text, no weights.

    Returns:
        ``ids_BL``, int64: start, words, padding, end.
    """
    size = tokenizer.model_max_length - 2
    rows = []
    for caption in captions:
        ids = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids[:size]
        padding = [tokenizer.pad_token_id] * (size - len(ids))
        rows.append([tokenizer.bos_token_id, *ids, *padding, tokenizer.eos_token_id])
    return torch.tensor(rows)
