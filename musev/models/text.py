"""Prompts with weights to text embeddings of any length.

Syntax: ``(x)`` times 1.1, ``[x]`` divided by 1.1, ``(x:1.4)`` times 1.4, nesting multiplies, and a
backslash before a bracket or backslash makes it plain text. Openers that are never closed reach to
the end; closers that open nothing are text (reference: ALGORITHM.md section 6).
"""

# Axes here: B prompt, L text token, D embedding.
from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from musev.errors import RequestError
from musev.models.text_inversion import Words

WeightedText = list[tuple[str, float]]

_EMPHASIS = 1.1
_PIECES = re.compile(
    r"\\(?P<escaped>[\\()\[\]])"
    r"|(?P<backslash>\\)"
    r"|(?P<opener>[(\[])"
    r"|:(?P<weight>[+-]?[.\d]+)\)"
    r"|(?P<closer>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)


def parse_prompt_weights(prompt: str) -> WeightedText:
    """Split a prompt into pieces of text and their weights.

    Args:
        prompt: Text with emphasis.

    Returns:
        ``(text, weight)`` pairs in order; neighbours of one weight are joined. An empty prompt is
        one empty piece of weight 1. A weight that is no number, such as ``(a:1.2.3)``, is a
        :class:`RequestError`.
    """
    pieces: list[tuple[str, float]] = []
    open_at: dict[str, list[int]] = {"(": [], "[": []}

    def scale_since(start: int, factor: float) -> None:
        pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]

    for match in _PIECES.finditer(prompt):
        opener, closer, weight = match["opener"], match["closer"], match["weight"]
        if opener:
            open_at[opener].append(len(pieces))
        elif weight is not None and open_at["("]:
            scale_since(open_at["("].pop(), _number(weight, prompt))
        elif closer == ")" and open_at["("]:
            scale_since(open_at["("].pop(), _EMPHASIS)
        elif closer == "]" and open_at["["]:
            scale_since(open_at["["].pop(), 1 / _EMPHASIS)
        elif match["backslash"] is None:
            # Everything left stands for itself; a lone backslash disappears, as in the original.
            pieces.append((match["escaped"] or match[0], 1.0))
    for start in reversed(open_at["("]):
        scale_since(start, _EMPHASIS)
    for start in reversed(open_at["["]):
        scale_since(start, 1 / _EMPHASIS)
    return _join_neighbours(pieces) or [("", 1.0)]


def _number(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(
            f"weight {text!r} in prompt {prompt!r} is not a number. Write (words:1.2), or put a "
            "backslash before brackets that are meant as text."
        ) from None


def _join_neighbours(pieces: WeightedText) -> WeightedText:
    joined: WeightedText = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined


@torch.no_grad()
def encode_prompts(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | None = None,
    *,
    words: Words | None = None,
) -> Tensor:
    """Encode prompts, and negative prompts where guidance needs them.

    All are padded to the chunks of 75 tokens that the longest needs. The original stops at three
    chunks (and fails beyond); here a longer prompt simply takes more.

    Args:
        tokenizer: The text encoder's tokenizer.
        text_encoder: CLIP text encoder, on its device.
        prompts: One a clip.
        negative_prompts: As many, or None without guidance; ``""`` for none.
        words: Learnt words that the encoder's table holds.

    Returns:
        ``text_BLD``: ``[negative, positive]`` along B, or the positive ones alone; L is 77 a chunk;
        in the encoder's dtype.

    Raises:
        RequestError: If the numbers of prompts differ.
    """
    if negative_prompts is not None and len(negative_prompts) != len(prompts):
        raise RequestError(
            f"{len(prompts)} prompts but {len(negative_prompts)} negative prompts; give one each"
        )
    words = words or Words()
    tokenized = [
        _tokenize(tokenizer, text, words) for text in (*(negative_prompts or ()), *prompts)
    ]
    size = tokenizer.model_max_length - 2
    num_chunks = max(1, *(math.ceil(len(ids) / size) for ids, _ in tokenized))
    rows = [
        _encode_one(tokenizer, text_encoder, ids, weights, num_chunks) for ids, weights in tokenized
    ]
    return torch.stack(rows)


def _tokenize(tokenizer: CLIPTokenizer, prompt: str, words: Words) -> tuple[list[int], list[float]]:
    """Token ids without start and end, and a weight for each; every piece is tokenized alone."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in parse_prompt_weights(prompt):
        piece: list[int] = []
        for part in words.split(text):
            if isinstance(part, str):
                part = tokenizer(part, add_special_tokens=False, verbose=False).input_ids
            piece.extend(part)
        ids.extend(piece)
        weights.extend([weight] * len(piece))
    return ids, weights


def _encode_one(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    ids: list[int],
    weights: list[float],
    num_chunks: int,
) -> Tensor:
    size = tokenizer.model_max_length - 2
    # One end token only, after all padding, as the original lays them out.
    num_pad = size * num_chunks - len(ids)
    padded = [*ids, *[tokenizer.pad_token_id] * num_pad]
    weights = weights + [1.0] * num_pad
    chunks = [padded[start : start + size] for start in range(0, len(padded), size)]
    framed = [[tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id] for chunk in chunks]
    scales = [[1.0, *weights[start : start + size], 1.0] for start in range(0, len(weights), size)]
    device = text_encoder.device
    # A chunk at a time: the last bits must not depend on what else is encoded (see vae.py).
    states = [
        text_encoder(torch.tensor([chunk], device=device)).last_hidden_state[0] for chunk in framed
    ]
    text_LD = torch.cat(states)
    if all(weight == 1.0 for weight in weights):
        return text_LD
    scales_L = torch.tensor(scales, device=device, dtype=text_LD.dtype).flatten()
    weighted_LD = text_LD * scales_L[:, None]
    # Weights change directions, not the prompt's overall level: the mean is put back.
    level = text_LD.float().mean() / weighted_LD.float().mean()
    return weighted_LD * level.to(text_LD.dtype)
