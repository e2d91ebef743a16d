"""The original's negative prompts, and the textual-inversion tokens that some of them hold.

A token is a word whose embedding comes from a file of its own. Without that file it would be read
as ordinary letters, which means nothing, so a text that holds one is refused.
"""

from __future__ import annotations

from collections.abc import Collection

EMBEDDING_TOKENS = (
    "badhandv4",
    "ng_deepnegative_v1_75t",
    "EasyNegativeV2",
    "bad_prompt_version2-neg",
)
"""Tokens whose files the original loads before every run (ALGORITHM.md 4.2)."""

_V1 = (
    "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, "
    "fewer digits, cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, "
    "watermark, username, blurry, tail, watermarks"
)
_V5 = (
    "(((multiple heads))), (((bad body))), (((two people))), ((extra arms)), ((deformed body)), "
    "(((sexy))), paintings,(((two heads))), ((big head)),sketches, (worst quality:2), "
    "(low quality:2), (normal quality:2), lowres, ((monochrome)), ((grayscale)), skin spots, "
    "acnes, skin blemishes, age spot, glans, (((nsfw))), nipples, extra fingers, (extra legs), "
    "(long neck), mutated hands, (fused fingers), (too many fingers)"
)

NEGATIVE_PROMPTS = {
    "Empty": "",
    "V1": _V1,
    "V2": f"badhandv4, ng_deepnegative_v1_75t, {_V5}",
    "V3": "badhandv4, ng_deepnegative_v1_75t, bad quality",
    "V4": "badhandv4,ng_deepnegative_v1_75t,EasyNegativeV2,bad_prompt_version2-neg,bad quality",
    "V5": _V5,
}
"""Upstream configs/model/negative_prompt.py (goldens functions/configs.json)."""


def missing_tokens(text: str, held: Collection[str]) -> tuple[str, ...]:
    """Find the tokens in a prompt whose embeddings the weights do not hold.

    Args:
        text: A prompt. Tokens count anywhere in it, also inside words, as the original reads them.
        held: Tokens that the weights have an embedding for.

    Returns:
        The tokens of :data:`EMBEDDING_TOKENS` that are named and not held.
    """
    return tuple(token for token in EMBEDDING_TOKENS if token in text and token not in held)
