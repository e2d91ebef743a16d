"""docs/from-musev.md against the code: profiles, defects, task keys."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from musev.config import to_plain
from musev.registry import get_profile
from pipelines.musev_tasks import _RENAMED, _TASK_KEYS
from tests.goldens import ROOT

PAGE = (ROOT / "docs" / "from-musev.md").read_text()
DEFECTS = 22


def table(heading: str) -> list[list[str]]:
    """Cells of the one table under a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = flat(value, f"{above}{name}.") if isinstance(value, dict) else None
        found |= inner or {f"{above}{name}": value}
    return found


def test_the_page_lists_every_difference_of_the_two_profiles_with_a_reason() -> None:
    theirs, ours = (flat(to_plain(get_profile(name))) for name in ("upstream", "musev"))
    differences = {
        (f"`{name}`", f"`{theirs[name]}`", f"`{ours[name]}`")
        for name in theirs
        if theirs[name] != ours[name] and name != "name"
    }
    rows = table("The two profiles")
    assert {tuple(row[:3]) for row in rows} == differences
    assert all(len(row[3]) > 20 for row in rows)


@functools.cache
def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


ROWS = table("Defects of the original that are gone")


def test_every_defect_has_its_row() -> None:
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, DEFECTS + 1)]
    assert all(row[1] and row[2] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"defect-{row[0]}")
def test_what_shows_a_defect_gone_is_a_test_that_exists(row: list[str]) -> None:
    shown = row[3]
    if shown == "open":
        return
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
    assert named
    assert ", ".join(f"`{file}::{name}`" for file, name in named) == shown
    for file, name in named:
        assert name.startswith("test_")
        assert name in functions_in(ROOT / file), f"{file} has no {name}"


def test_the_page_names_every_key_of_a_task_file() -> None:
    keys = {key for row in table("Task files") for key in re.findall(r"`(\w+)`", row[0])}
    assert set(_RENAMED) <= keys
    assert keys <= _TASK_KEYS
