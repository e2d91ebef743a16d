"""What a stage trains, as patterns of parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from musev.errors import ConfigError


def freeze_except(
    module: nn.Module, trained: Sequence[str], *, but_not: Sequence[str] = ()
) -> list[str]:
    """Let only the matching parameters learn.

    Args:
        module: All its parameters are set, one way or the other.
        trained: Shell patterns over parameter names, ``*`` matches dots too.
        but_not: Patterns that stay frozen although they match.

    Returns:
        Names of the parameters that learn.

    Raises:
        ConfigError: If a pattern matches nothing: it is a slip, and would train too little in
            silence.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in (*trained, *but_not):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"no parameter matches {pattern!r}; names look like {names[:3]}")
    chosen = []
    for name, parameter in module.named_parameters():
        learns = _matches(name, trained) and not _matches(name, but_not)
        parameter.requires_grad_(learns)
        if learns:
            chosen.append(name)
    return chosen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
