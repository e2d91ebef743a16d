"""Change single settings of a config by their dotted keys, as ``--set`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from musev.config import ConfigT, WeightsConfig, field_types
from musev.errors import ConfigError


def replace_setting(config: ConfigT, key: str, value: Any) -> ConfigT:
    """Return ``config`` with one setting replaced; see :func:`replace_settings`."""
    return replace_settings(config, {key: value})


def replace_settings(config: ConfigT, settings: Mapping[str, Any]) -> ConfigT:
    """Return ``config`` with settings replaced at dotted keys, all at once.

    At once, because two settings may be valid only together. Naming one source of weights (bundle,
    seed, published folders) drops the others.

    Args:
        config: Any frozen config of this module.
        settings: Dotted path, for example ``sampling.windows.overlap``, to the new value; text is
            converted to the field's type (``none`` means None).

    Returns:
        A new config; its checks have run again.

    Raises:
        ConfigError: If no such setting exists or a value does not fit.
    """
    names = [item.name for item in dataclasses.fields(config)]
    changes: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        head, _, rest = key.partition(".")
        if head not in names:
            raise ConfigError(
                f"no setting {head!r} in {type(config).__name__}; settings: {', '.join(names)}"
            )
        now = getattr(config, head)
        if isinstance(now, Mapping):
            changes[head] = _with_entry(changes.get(head, now), rest, value, key)
            continue
        is_group = dataclasses.is_dataclass(now)
        if rest and not is_group:
            raise ConfigError(f"setting {head!r} has no parts, so {key!r} does not exist")
        if is_group and not rest:
            raise ConfigError(f"{key!r} is a group of settings; name one of its parts")
        if rest:
            parts.setdefault(head, {})[rest] = value
        else:
            changes[head] = _convert(value, field_types(type(config))[head], key)
    if isinstance(config, WeightsConfig):
        changes = _other_sources_dropped(changes) | changes
    for head, inner in parts.items():
        changes[head] = replace_settings(getattr(config, head), inner)
    return dataclasses.replace(config, **changes)


def _with_entry(table: Mapping[str, str], name: str, value: Any, key: str) -> dict[str, str]:
    if not name:
        raise ConfigError(f"{key!r} is a table; name one entry, as in {key}.NAME=VALUE")
    others = {other: text for other, text in table.items() if other != name}
    return others if value is None or str(value).lower() in _NONE else others | {name: str(value)}


_NONE = ("none", "null")
PUBLISHED_PARTS = (
    "t2i",
    "t2i_config",
    "motion",
    "referencenet",
    "image_prompt",
    "image_encoder",
    "face",
    "vae",
)
_WEIGHTS_SOURCES = (("bundle",), ("random_seed",), PUBLISHED_PARTS)


def _other_sources_dropped(changes: dict[str, Any]) -> dict[str, Any]:
    """None for every source of weights besides those that are being set."""
    named = (("bundle",), ("random_seed",), ("t2i", "motion"))  # a VAE may go with any source
    given = [any(changes.get(name) is not None for name in group) for group in named]
    if not any(given):
        return {}
    return {
        name: None
        for group, used in zip(_WEIGHTS_SOURCES, given, strict=True)
        if not used
        for name in group
    }


def _convert(value: Any, kind: Any, key: str) -> Any:
    if not isinstance(value, str):
        return value
    options = [item for item in get_args(kind) if item is not type(None)]
    if get_origin(kind) is Literal:
        return value
    optional = len(options) < len(get_args(kind))
    if optional and value.lower() in _NONE:
        return None
    target = options[0] if optional else kind
    if get_origin(target) is tuple:
        return _convert_parts(value, get_args(target), key)
    if get_origin(target) is Literal or target is str:
        return value
    if target is bool:
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"{key} must be true or false, got {value!r}")
        return value.lower() == "true"
    try:
        return target(value)
    except ValueError:
        raise ConfigError(f"{key} must be {target.__name__}, got {value!r}") from None


def _convert_parts(value: str, kinds: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    """The parts of a list in one text, each of its own type."""
    parts = [part.strip() for part in value.split(";") if part.strip()]
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(parts)
    if len(parts) != len(kinds):
        raise ConfigError(f"{key} must be {len(kinds)} values with ';' between, got {value!r}")
    return tuple(_convert(part, kind, key) for part, kind in zip(parts, kinds, strict=True))
