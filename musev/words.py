"""The words of a prompt, for what knows a closed vocabulary."""

from __future__ import annotations

import re


def words_of(prompt: str) -> list[str]:
    """The words of a prompt in lower case, without signs; letters of any script count."""
    return re.findall(r"[\w']+", prompt.lower())
