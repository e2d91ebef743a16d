"""What one manifest value may be: its type, its range, and where a media path may point.

Every function either returns the value as the rest of the system wants it or raises a
:class:`RequestError` that says what was wrong and what to do. Rows and columns are named by the
caller, ``pipelines.manifest``.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import numbers
import posixpath
import re
from collections.abc import Iterable
from typing import Any

import fsspec

from musev.errors import ConfigError, ManifestError, RequestError
from pipelines.rows import MANIFEST_COLUMNS, BadCell, Column, canonical_json

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?=::|://)")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_PROSE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_KIND_WORDS = {
    "text": "text",
    "integer": "a whole number",
    "number": "a number",
    "flag": "true or false",
    "texts": "a list of texts",
    "numbers": "a list of numbers",
    "integers": "a list of whole numbers",
    "pictures": "a path or a list of paths",
    "json": "text or JSON",
}


def shorten(value: Any, limit: int = 80) -> str:
    """Show a value in an error message without filling the screen."""
    shown = repr(value)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def check_type(column: Column, value: Any) -> Any:
    """Bring a value into the column's type without guessing.

    Whole floats pass as integers (tables with gaps store them so); numbers never pass as text nor
    text as numbers.

    Args:
        column: The manifest column.
        value: The raw value; not None.

    Returns:
        The value as str, int, float, bool or list of these.

    Raises:
        RequestError: If the type is another.
    """
    if type(value) is _PLAIN_TYPES.get(column.kind):
        return value  # the common case; a manifest has millions of these
    if isinstance(value, BadCell):
        raise RequestError(value.reason)
    converted = _CONVERTERS[column.kind](value)
    if converted is None:
        raise RequestError(
            f"must be {_KIND_WORDS[column.kind]}, got {type(value).__name__} {shorten(value)}. "
            f"Give {_KIND_WORDS[column.kind]}, or leave it null."
        )
    return converted


def check_value(column: Column, value: Any) -> Any:
    """Check one value against everything that its column alone can tell.

    Args:
        column: The manifest column.
        value: The raw value; not None.

    Returns:
        The value in the column's type.

    Raises:
        RequestError: If type, range, choice or text is wrong.
    """
    value = check_type(column, value)
    if isinstance(value, str):
        _check_text(column, value)
    elif isinstance(value, (int, float)):
        _check_range(column, value)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, (int, float)):
                _check_range(column, item)
            elif column.kind == "pictures":
                _check_text(column, item)
    return value


def _check_text(column: Column, value: str) -> None:
    if not column.may_be_empty and not value.strip():
        raise RequestError("is empty text. Leave it null, or give a value.")
    if len(value) > column.max_chars:
        raise RequestError(
            f"has {len(value)} characters, at most {column.max_chars} are allowed. Shorten it."
        )
    prose = column.may_be_empty and column.kind == "text"
    found = (_CONTROL_IN_PROSE if prose else _CONTROL).search(value)
    if found and column.kind in ("text", "pictures"):
        raise RequestError(
            f"holds the control character {found.group()!r} at position {found.start()}. Remove it."
        )
    if column.choices and value not in column.choices:
        near = difflib.get_close_matches(value, column.choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RequestError(
            f"must be one of {', '.join(column.choices)}; got {shorten(value)}.{hint}"
        )


def _check_range(column: Column, value: float) -> None:
    if not math.isfinite(value):
        raise RequestError(f"must be a finite number, got {value}. Leave it null for the default.")
    low = column.low if column.low is not None else column.above
    too_low = low is not None and (value < low or (value == low and column.above is not None))
    if too_low or (column.high is not None and value > column.high):
        least = f"above {low:g}" if column.above is not None else f"at least {low:g}"
        most = int(column.high) if column.kind == "integer" else f"{column.high:g}"
        raise RequestError(
            f"must be {least} and at most {most}, got {value}. "
            "Give a value in that range, or leave it null for the profile's."
        )


def _as_text(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    if not value.isascii() and _SURROGATE.search(value):
        raise RequestError("is not valid text (it holds half a surrogate pair). Save it as UTF-8.")
    return value


def _as_integer(value: Any) -> int | None:
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    if not isinstance(value, numbers.Integral) and not math.isfinite(value):
        raise RequestError(f"must be a finite number, got {value}. Leave it null for the default.")
    if value != int(value):
        return None
    if not -(2**63) <= value < 2**63:
        raise RequestError(f"must fit in 64 bits, got {shorten(value)}. Give a smaller number.")
    return int(value)


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        raise RequestError("is too large for a number. Give a smaller one.") from None


def _as_flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _as_texts(value: Any) -> list[str] | None:
    fits = isinstance(value, list) and all(_as_text(item) is not None for item in value)
    return value if fits else None


def _as_numbers(value: Any) -> list[float] | None:
    if not isinstance(value, list):
        return None
    items = [_as_number(item) for item in value]
    return None if None in items else items  # pyright: ignore[reportReturnType]


def _as_integers(value: Any) -> list[int] | None:
    if not isinstance(value, list):
        return None
    items = [_as_integer(item) for item in value]
    return None if None in items else items  # pyright: ignore[reportReturnType]


def _as_pictures(value: Any) -> str | list[str] | None:
    """A path; or several, as a list or as the text of a JSON list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise RequestError(
                f"{shorten(value)} begins like a JSON list of paths and is none. Write it as "
                '["a.png", "b.png"], or give one path.'
            ) from None
    if isinstance(value, list):
        texts = _as_texts(value)
        return texts[0] if texts and len(texts) == 1 else texts or None
    return _as_text(value)


def _as_json(value: Any) -> str | None:
    if isinstance(value, (str, bytes)):
        return _as_text(value)
    try:
        return canonical_json(value)
    except (ConfigError, RecursionError) as problem:
        raise RequestError(f"cannot be written as JSON: {problem}") from None


_PLAIN_TYPES = {"number": float, "flag": bool}
_CONVERTERS = {
    "text": _as_text,
    "integer": _as_integer,
    "number": _as_number,
    "flag": _as_flag,
    "texts": _as_texts,
    "numbers": _as_numbers,
    "integers": _as_integers,
    "pictures": _as_pictures,
    "json": _as_json,
}


def parse_cell(column: Column, text: str) -> Any:
    """Read a cell of a format that knows only text (CSV, and sweeps in task YAML).

    Numbers and flags are parsed; lists are JSON arrays or comma lists. Text that does not parse is
    given back as it is, and :func:`check_type` then names it.

    Args:
        column: The manifest column.
        text: The cell.

    Returns:
        The value in the column's type, or ``text``; None for blank text where it is no text column.
    """
    if column.kind in ("text", "json", "pictures"):
        return text
    stripped = text.strip()
    if not stripped:
        return None
    if column.kind == "flag":
        return {"true": True, "false": False}.get(stripped.lower(), text)
    try:
        if column.kind == "integer":
            return int(stripped)
        if column.kind == "number":
            return float(stripped)
        if stripped.startswith("["):
            return json.loads(stripped)
        items = [item.strip() for item in stripped.split(",")]
        if column.kind == "texts":
            return items
        return [int(item) if column.kind == "integers" else float(item) for item in items]
    except ValueError:
        return text


@functools.cache
def _known_schemes() -> frozenset[str]:
    return frozenset(fsspec.available_protocols())


def media_uris(column: Column, value: Any, base_uri: str) -> Any:
    """Turn a column's path or paths into absolute URIs; see :func:`media_uri`.

    Args:
        column: A column of media.
        value: What it holds.
        base_uri: Folder of the manifest, as a URI.

    Returns:
        A URI, or a list of them.
    """
    checked = check_type(column, value)
    if isinstance(checked, list):
        return [media_uri(item, base_uri) for item in checked]
    return media_uri(checked, base_uri)


def media_uri(value: str, base_uri: str) -> str:
    """Turn a manifest's media path into an absolute fsspec URI.

    Args:
        value: URI with a scheme, absolute local path, or path relative to ``base_uri``.
        base_uri: Folder of the manifest, as a URI.

    Returns:
        The absolute URI.

    Raises:
        RequestError: If the path leaves the manifest's folder, is a Windows path, or its scheme has
            no storage driver.
    """
    if scheme := _SCHEME.match(value):
        return _checked_uri(value, scheme.group(1))
    if _WINDOWS_PATH.match(value):
        raise RequestError(
            f"is a Windows path, {shorten(value)}. Workers run Linux: give a URI such as "
            "s3://bucket/name.png, or put the file beside the manifest."
        )
    if value.startswith("/"):
        return "file://" + _absolute(value)
    path = posixpath.normpath(value)
    if path in (".", "..") or path.startswith("../"):
        raise RequestError(
            f"path outside the manifest's folder: {shorten(value)}. "
            "Give an absolute URI, or put the file beside the manifest."
        )
    return base_uri + ("" if base_uri.endswith("/") else "/") + path


def _checked_uri(value: str, scheme: str) -> str:
    if scheme not in _known_schemes():
        near = difflib.get_close_matches(scheme, _known_schemes(), n=1)
        hint = f" Did you mean {near[0]}://?" if near else ""
        raise RequestError(f"no storage driver for {scheme}:// in {shorten(value)}.{hint}")
    if scheme not in ("file", "local") or not value.startswith(f"{scheme}://"):
        return value
    path = value[len(scheme) + 3 :]
    if not path.startswith("/"):
        raise RequestError(
            f"{shorten(value)} is not absolute. Write file:///folder/name.png with three slashes."
        )
    return "file://" + _absolute(path)


def _absolute(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse a manifest with a column that does not exist; nothing misspelt is ever ignored.

    Args:
        names: Column names found.
        where: File (and line) they were found in.

    Raises:
        ManifestError: If one is unknown or appears twice; names the nearest known column.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ManifestError(f"{where}: column {name!r} appears twice. Remove one of them.")
        seen.add(name)
        if name not in MANIFEST_COLUMNS:
            raise ManifestError(
                f"{where}: unknown column {shorten(name)}.{nearest_hint(name)} "
                f"Columns: {', '.join(MANIFEST_COLUMNS)}. Your own data belongs in 'extra'."
            )


def nearest_hint(name: str) -> str:
    """``" Did you mean 'x'?"`` for the nearest manifest column, or nothing."""
    near = difflib.get_close_matches(name.strip().lower(), MANIFEST_COLUMNS, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
