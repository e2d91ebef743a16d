from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from musev.errors import ConfigError
from pipelines.python_tables import parse_python_table, read_python_table
from tests.goldens import GOLDENS, have_goldens, require_goldens

FILE = GOLDENS / "pipeline" / "functions" / "configs.json"
TABLES = json.loads(FILE.read_text()) if have_goldens() else {"missing": {}}


def read(text: str, name: str = "MODEL_CFG") -> dict[str, Any]:
    return parse_python_table(text, name, own_path="/musev/configs/model/t.py", where="t.py")


def as_source(value: Any, project: str) -> str:
    """Write a recorded table as the original's files do: paths joined onto the file's folder."""
    if isinstance(value, dict):
        items = (f"{as_source(k, project)}: {as_source(v, project)}" for k, v in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, str) and value.startswith("$PROJECT/"):
        first, *rest = value.removeprefix("$PROJECT/").split("/", 1)
        return (
            f"os.path.join({project}, {first!r}, *[])"
            if not rest
            else (f"os.path.join({project}, {first!r}, {rest[0]!r})")
        )
    return repr(value)


@pytest.mark.parity
@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_original_is_read_as_its_own_loader_does(name: str, tmp_path: Path) -> None:
    require_goldens()
    variable = "Negative_Prompt_CFG" if name == "negative_prompt" else "MODEL_CFG"
    project = 'os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")'
    file = tmp_path / "configs" / "model" / f"{name}.py"
    file.parent.mkdir(parents=True)
    source = as_source(TABLES[name], "ProjectDir")
    file.write_text(f"import os\n\nProjectDir = {project}\n{variable} = {source}\n")
    expected = json.loads(json.dumps(TABLES[name]).replace("$PROJECT", str(tmp_path)))
    assert read_python_table(str(file), variable) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MODEL_CFG = {'a': 1, 'b': [True, None, -2.5], 'c': (1,)}", None),
        ("x = 'a'\nMODEL_CFG = {x: x + 'b' + f'-{x}'}", {"a": "ab-a"}),
        ("MODEL_CFG = {}\nMODEL_CFG['a'] = {'sd': 'x'}", {"a": {"sd": "x"}}),
        ("A = {'a': 1}\nMODEL_CFG = {**A, 'b': A['a']}", {"a": 1, "b": 1}),
        ("MODEL_CFG: dict = dict(a=dict(sd='x'))", {"a": {"sd": "x"}}),
        ("import os\nMODEL_CFG = {'a': os.path.join('../x', '..', 'y')}", {"a": "../y"}),
        ("import os\nMODEL_CFG = {'a': os.path.dirname(__file__)}", {"a": "/musev/configs/model"}),
        ("def f():\n    return 1\nMODEL_CFG = {'a': 1}", {"a": 1}),
        ("print('hello')\nMODEL_CFG = {'a': 1}", {"a": 1}),
    ],
)
def test_what_is_understood(text: str, expected: dict[str, Any] | None) -> None:
    found = read(text)
    assert found == (expected or {"a": 1, "b": [True, None, -2.5], "c": [1]})


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("MODEL_CFG = {", "not readable as Python"),
        ("MODEL_CGF = {}", "Did you mean 'MODEL_CGF'"),
        ("MODEL_CFG = [1]", "must be a dict, got list"),
        ("MODEL_CFG = {'a': open('x').read()}", "line 1.*call.*never executed"),
        ("import os\nx = os.environ['HOME']\n\nMODEL_CFG = {'a': x}", "line 2"),
        ("MODEL_CFG = {'a': y}", "name 'y', which the file does not assign"),
        ("MODEL_CFG = {'a': 1}\nfor k in range(3):\n    MODEL_CFG[k] = 1", "line 2.*for statement"),
        ("MODEL_CFG = {'a': 1}\nMODEL_CFG.update({'b': 2})", "line 2.*expr statement"),
        ("if True:\n    MODEL_CFG = {}", "line 1.*if statement"),
        ("MODEL_CFG = {}\nMODEL_CFG['a'] = open('x')", "line 2"),
        ("MODEL_CFG = {'a': 'x' * 10**9}", "line 1"),
        ("MODEL_CFG = {'a': [k for k in 'ab']}", "line 1"),
        ("MODEL_CFG = {'a': 'x'.upper()}", "call"),
        ("MODEL_CFG = {(1, 2): 'x'}", "the key"),
    ],
)
def test_what_is_no_data_is_refused_with_its_line(text: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){phrase}"):
        read(text)


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    file = tmp_path / "t.py"
    file.write_text(f"open({str(trace)!r}, 'w').close()\nMODEL_CFG = {{'a': 1}}\n")
    assert read_python_table(str(file), "MODEL_CFG") == {"a": 1}
    assert not trace.exists()


def test_a_table_on_storage() -> None:
    import fsspec

    text = "import os\nD = os.path.dirname(os.path.abspath(__file__))\n"
    text += "MODEL_CFG = {'a': os.path.join(D, '../w')}\n"
    fsspec.filesystem("memory").pipe_file("/cfg/model/t.py", text.encode())
    assert read_python_table("memory://cfg/model/t.py", "MODEL_CFG") == {"a": "memory:///cfg/w"}


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the table /nowhere/t\.py"):
        read_python_table("/nowhere/t.py", "MODEL_CFG")
