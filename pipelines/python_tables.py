"""Tables kept as Python source, read as data: nothing in the file is ever executed.

The original keeps its model tables in files such as ``T2I_all_model.py``. What such a file needs is
understood: literals, names assigned before, ``+``, f-strings, and the path functions of
``os.path``. Whatever else it holds does no harm unless the table depends on it.
"""

from __future__ import annotations

import ast
import difflib
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from musev.errors import ConfigError

_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a value that only executing the file would give."""

    line: int
    reason: str


class _NotData(Exception):
    """Arguments: line, reason. Never leaves this module."""


def read_python_table(uri: str, name: str) -> dict[str, Any]:
    """Read one table out of a Python file.

    Args:
        uri: Path or URL of the file.
        name: The variable that holds the table, such as ``MODEL_CFG``.

    Returns:
        The table; paths that the file builds from its own place are absolute.

    Raises:
        ConfigError: If the file cannot be read or parsed, has no such variable, or the variable is
            no table of plain values.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        text = fs.cat_file(path)[:_MAX_BYTES].decode()
    except (OSError, ValueError, ImportError) as problem:
        raise ConfigError(f"cannot read the table {uri}: {problem}") from None
    own_path = fs.unstrip_protocol(path).removeprefix("file://")
    return parse_python_table(text, name, own_path=own_path, where=uri)


def parse_python_table(text: str, name: str, *, own_path: str, where: str) -> dict[str, Any]:
    """Find a table in Python source; see :func:`read_python_table`.

    Args:
        text: The source.
        name: The variable that holds the table.
        own_path: What ``__file__`` stands for.
        where: How messages call the source.

    Returns:
        The table.

    Raises:
        ConfigError: If there is no such table, or it is not plain data.
    """
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as problem:
        raise ConfigError(f"{where}: not readable as Python ({problem}).") from None
    known: dict[str, Any] = {"__file__": own_path}
    for statement in module.body:
        _assign(statement, known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}: holds no table {name}.{hint}")
    table = known[name]
    if isinstance(table, _Unreadable):
        raise ConfigError(
            f"{where}, line {table.line}: {name} depends on {table.reason}, and tables are read as "
            "data, never executed. Write the value out."
        )
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {name} must be a dict, got {type(table).__name__}.")
    return table


def _assign(statement: ast.stmt, known: dict[str, Any]) -> None:
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets, value = [statement.target], statement.value
    else:
        _spoil(statement, known)
        return
    found = _evaluate(value, known)
    for target in targets:
        if isinstance(target, ast.Name):
            known[target.id] = found
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            _put(target, found, known)
        else:
            _spoil(statement, known)


def _put(target: ast.Subscript, found: Any, known: dict[str, Any]) -> None:
    """``TABLE[key] = value``."""
    assert isinstance(target.value, ast.Name)
    table, key = known.get(target.value.id), _evaluate(target.slice, known)
    problem = next((x for x in (key, found) if isinstance(x, _Unreadable)), None)
    if isinstance(table, dict) and problem is None:
        known[target.value.id] = {**table, key: found}
    elif isinstance(table, dict):
        known[target.value.id] = problem


def _spoil(statement: ast.stmt, known: dict[str, Any]) -> None:
    """Names that a statement may change hold nothing that can be told without executing it."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and node.id != "__file__":
            stored = isinstance(node.ctx, ast.Store)
            held = isinstance(known.get(node.id), (dict, list))  # a method call may change it
            if stored or held:
                reason = f"a {type(statement).__name__.lower()} statement"
                known[node.id] = _Unreadable(statement.lineno, reason)


def _evaluate(node: ast.expr, known: Mapping[str, Any]) -> Any:
    try:
        return _value(node, known)
    except _NotData as problem:
        return _Unreadable(*problem.args)


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    reader = _READERS.get(type(node))
    if reader is None:
        raise _NotData(node.lineno, f"{ast.unparse(node)[:60]!r}")
    return reader(node, known)


def _name(node: ast.Name, known: Mapping[str, Any]) -> Any:
    if node.id not in known:
        raise _NotData(node.lineno, f"the name {node.id!r}, which the file does not assign")
    found = known[node.id]
    if isinstance(found, _Unreadable):
        raise _NotData(found.line, found.reason)
    return found


def _dict(node: ast.Dict, known: Mapping[str, Any]) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:  # {**other}
            inner = _value(value, known)
            if not isinstance(inner, dict):
                raise _NotData(node.lineno, f"{ast.unparse(value)[:60]!r}, which is no dict")
            table |= inner
            continue
        name = _value(key, known)
        if not isinstance(name, (str, int, float, bool, type(None))):
            raise _NotData(node.lineno, f"the key {ast.unparse(key)[:60]!r}")
        table[name] = _value(value, known)
    return table


def _sum(node: ast.BinOp, known: Mapping[str, Any]) -> Any:
    left, right = _value(node.left, known), _value(node.right, known)
    kinds = (str, list, int, float)
    if isinstance(node.op, ast.Add) and isinstance(left, kinds) and isinstance(right, kinds):
        try:
            return left + right  # pyright: ignore[reportOperatorIssue]
        except TypeError:
            pass
    raise _NotData(node.lineno, f"{ast.unparse(node)[:60]!r}")


def _negative(node: ast.UnaryOp, known: Mapping[str, Any]) -> Any:
    value = _value(node.operand, known)
    if not isinstance(node.op, ast.USub) or not isinstance(value, (int, float)):
        raise _NotData(node.lineno, f"{ast.unparse(node)[:60]!r}")
    return -value


def _text(node: ast.JoinedStr, known: Mapping[str, Any]) -> str:
    parts = []
    for part in node.values:
        if not isinstance(part, ast.FormattedValue):
            parts.append(str(_value(part, known)))
        elif part.format_spec is None and part.conversion == -1:
            parts.append(str(_value(part.value, known)))
        else:
            raise _NotData(node.lineno, f"{ast.unparse(node)[:60]!r}")
    return "".join(parts)


def _item(node: ast.Subscript, known: Mapping[str, Any]) -> Any:
    table, key = _value(node.value, known), _value(node.slice, known)
    try:
        return table[key]
    except (KeyError, IndexError, TypeError):
        raise _NotData(node.lineno, f"{ast.unparse(node)[:60]!r}, which does not exist") from None


def _call(node: ast.Call, known: Mapping[str, Any]) -> Any:
    function = ast.unparse(node.func)
    if function == "dict" and not node.args and all(word.arg for word in node.keywords):
        return {word.arg: _value(word.value, known) for word in node.keywords}
    pure = _PATH_FUNCTIONS.get(function)
    if pure is None or node.keywords or not node.args:
        raise _NotData(node.lineno, f"the call {ast.unparse(node)[:60]!r}")
    arguments = [_value(argument, known) for argument in node.args]
    if not all(isinstance(argument, str) for argument in arguments):
        raise _NotData(node.lineno, f"the call {ast.unparse(node)[:60]!r}")
    return pure(*arguments)


def _join(*parts: str) -> str:
    joined = posixpath.join(*parts)
    scheme, separator, path = joined.partition("://")
    return (
        scheme + separator + posixpath.normpath(path) if separator else posixpath.normpath(joined)
    )


def _same(path: str) -> str:
    return path  # the file's own path is absolute already


_PATH_FUNCTIONS: dict[str, Any] = {
    "os.path.join": _join,
    "os.path.dirname": posixpath.dirname,
    "os.path.basename": posixpath.basename,
    "os.path.abspath": _same,
    "os.path.realpath": _same,
    "os.path.normpath": _join,
    "str": _same,
}
_READERS: dict[type[ast.expr], Callable[[Any, Mapping[str, Any]], Any]] = {
    ast.Constant: lambda node, known: node.value,
    ast.Name: _name,
    ast.Dict: _dict,
    ast.List: lambda node, known: [_value(item, known) for item in node.elts],
    ast.Tuple: lambda node, known: [_value(item, known) for item in node.elts],
    ast.BinOp: _sum,
    ast.UnaryOp: _negative,
    ast.JoinedStr: _text,
    ast.Subscript: _item,
    ast.Call: _call,
}
