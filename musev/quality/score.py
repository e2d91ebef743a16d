"""What a judge says: a number, or that it cannot say, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A judge's answer; without a value there is a reason, never a number that stands for one."""

    value: float
    """NaN if the judge cannot say."""
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether the judge could say."""
        return not math.isnan(self.value)


def unknown(reason: str) -> Score:
    """The answer of a judge that cannot say.

    Args:
        reason: What it would have needed.

    Returns:
        A score without a value.
    """
    return Score(math.nan, reason)
