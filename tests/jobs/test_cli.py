from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipelines.manifest import read_manifest, write_manifest

GOOD = {"request_id": "a", "prompt": "p", "condition_image": "a.png"}


def musev(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def flags(command: str) -> set[str]:
    words = musev(command, "--help").output.replace("│", " ").split()
    return {word for word in words if word.startswith("--")}


def test_the_set_of_flags_is_on_purpose() -> None:
    assert flags("manifest") == {"--check", "--profile", "--set", "--help"}


def test_help_and_import_cost_neither_torch_nor_ray() -> None:
    code = (
        "import sys; import jobs.cli; import pipelines.manifest; "
        "heavy = {'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_help_needs_no_job_module(monkeypatch) -> None:
    for name in ("text_to_video", "make_dataset"):
        monkeypatch.setitem(sys.modules, f"jobs.{name}", None)
    result = musev("--help")
    assert result.exit_code == 0
    assert "text-to-video" in result.output
    assert "make-dataset" in result.output
    assert "manifest" in result.output


@pytest.mark.parametrize("command", ["text-to-video", "make-dataset"])
def test_a_job_gets_its_arguments_as_they_are(monkeypatch, command: str) -> None:
    import types

    name = f"jobs.{command.replace('-', '_')}"
    seen: list[list[str]] = []
    job = types.ModuleType(name)
    job.main = lambda argv: seen.append(argv) or 3
    monkeypatch.setitem(sys.modules, name, job)
    monkeypatch.setattr(name, job, raising=False)
    result = musev(command, "--manifest", "m.csv", "--help", "--dry-run")
    assert result.exit_code == 3
    assert seen == [["--manifest", "m.csv", "--help", "--dry-run"]]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_convert_and_back(tmp_path: Path, name: str) -> None:
    write_manifest([GOOD], str(tmp_path / "src.parquet"))
    assert musev("manifest", tmp_path / "src.parquet", tmp_path / name).exit_code == 0
    assert musev("manifest", tmp_path / name, tmp_path / "back.parquet").exit_code == 0
    assert read_manifest(str(tmp_path / "back.parquet")).rows == [GOOD]


def test_convert_to_another_folder_keeps_media(tmp_path: Path) -> None:
    write_manifest([GOOD], str(tmp_path / "src.csv"))
    musev("manifest", tmp_path / "src.csv", tmp_path / "new" / "dst.csv")
    (row,) = read_manifest(str(tmp_path / "new" / "dst.csv")).rows
    assert row["condition_image"] == f"file://{tmp_path}/a.png"


def test_convert_leaves_unwritable_rows_out_aloud(tmp_path: Path) -> None:
    source = tmp_path / "tasks.yaml"
    source.write_text("- {name: a, prompt: '{hair}'}\n- {name: b, prompt: p}\n")
    result = musev("manifest", source, tmp_path / "m.parquet")
    assert result.exit_code == 3
    assert "1 of 2 rows written" in result.output
    assert "left out: row 1, column 'prompt'" in result.output
    rows = read_manifest(str(tmp_path / "m.parquet")).rows
    assert [row["request_id"] for row in rows] == ["b"]


def test_check_prints_failures_and_counts(tmp_path: Path) -> None:
    source = tmp_path / "m.csv"
    source.write_text("request_id,prompt,num_frames\na,p,12\nb,p,-1\na,p,3\n")
    result = musev("manifest", source, "--check")
    assert result.exit_code == 3
    assert "row 2 ('b'), column 'num_frames': must be at least 1" in result.output
    assert "row 3 ('a'), column 'request_id'" in result.output
    assert "3 rows under profile mini: 1 good, 2 bad" in result.output


def test_check_uses_the_profile_and_its_changes(tmp_path: Path) -> None:
    source = tmp_path / "m.csv"
    source.write_text("request_id,prompt,width\na,p,144\n")
    assert musev("manifest", source, "--check").exit_code == 0
    assert musev("manifest", source, "--check", "--profile", "musev").exit_code == 3
    changed = ("--profile", "musev", "--set", "size_multiple=16")
    assert musev("manifest", source, "--check", *changed).exit_code == 0


def test_many_failures_do_not_fill_the_screen(tmp_path: Path) -> None:
    source = tmp_path / "m.csv"
    source.write_text("request_id,prompt,fps\n" + "".join(f"r{i},p,-1\n" for i in range(60)))
    result = musev("manifest", source, "--check")
    assert "... and 10 more" in result.output
    assert "60 bad" in result.output


@pytest.mark.parametrize(
    ("args", "phrase"),
    [
        (["nowhere.csv", "--check"], "no manifest at"),
        (["{tmp}/m.csv"], "nothing to do"),
        (["{tmp}/m.csv", "--check", "--profile", "minii"], "Did you mean"),
        (["{tmp}/m.csv", "--check", "--set", "x"], "KEY=VALUE"),
        (["{tmp}/m.csv", "{tmp}/m.xlsx"], "unknown format"),
        (["{tmp}/bad.csv", "--check"], "Did you mean 'prompt'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_wrong_use_has_status_2(tmp_path: Path, args: list[str], phrase: str) -> None:
    (tmp_path / "m.csv").write_text("request_id,prompt\na,p\n")
    (tmp_path / "bad.csv").write_text("request_id,promt\na,p\n")
    result = musev("manifest", *(arg.format(tmp=tmp_path) for arg in args))
    assert result.exit_code == 2
    assert phrase in result.output
