"""Promises about the repository itself: contracts, mirrored tests, set-up, the cluster file."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("musev", "pipelines", "jobs")
MAX_FILE_BYTES = 1_000_000
BUNDLES = "musev/bundles/"
MAX_BUNDLES_BYTES = 16_000_000
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")


def _tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    files = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in files if path.is_file()]


def test_import_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("job", JOBS)
def test_importing_a_job_loads_neither_torch_nor_a_model_library(job: str) -> None:
    """The driver starts in a second and needs no memory for networks."""
    heavy = ("torch", "diffusers", "transformers", "controlnet_aux")
    code = f"import sys, jobs.{job}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_every_source_file_has_its_test_file() -> None:
    """``musev/denoise/noise.py`` is tested in ``tests/musev/denoise/test_noise*.py``."""
    sources = [
        path.relative_to(ROOT)
        for path in _tracked_files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES
    ]
    missing = [
        str(source)
        for source in sources
        if source.stem != "__init__"
        and not list((ROOT / "tests" / source.parent).glob(f"test_{source.stem}*.py"))
    ]
    assert missing == []


def test_no_package_files_under_tests() -> None:
    """With them ``tests/musev`` would shadow the package."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_large_file_is_committed() -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in _tracked_files()}
    weights = {name: size for name, size in sizes.items() if name.startswith(BUNDLES)}
    large = {name for name, size in sizes.items() if size > MAX_FILE_BYTES}
    assert large <= set(weights)
    assert sum(weights.values()) <= MAX_BUNDLES_BYTES


def test_no_registry_host_is_named() -> None:
    """Where packages and weights come from is the user's choice, made outside the repository."""
    hosts = ("pypi" + ".org", "python" + "hosted", "hugging" + "face.co", "docker" + ".io")
    hosts += ("gh" + "cr.io", "npm" + "js.org", "ana" + "conda.org", "download.py" + "torch")
    found = {
        (str(path.relative_to(ROOT)), host)
        for path in _tracked_files()
        for host in hosts
        if host.encode() in path.read_bytes()
    }
    assert found == set()


def test_constraints_pin_every_direct_dependency() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{text} excludes {pins[name]}"


def test_readme_lists_exactly_the_manifests_columns() -> None:
    from pipelines.rows import MANIFEST_COLUMNS

    text = (ROOT / "README.md").read_text()
    table = text.split("| column | meaning |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(MANIFEST_COLUMNS)


def test_readme_lists_exactly_the_profiles() -> None:
    from musev.registry import PROFILES

    table = (ROOT / "README.md").read_text().split("| profile |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == sorted(PROFILES)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/control.md",
        "docs/datasets.md",
        "docs/from-musev.md",
        "docs/goldens.md",
    ],
)
def test_pages_name_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    code = re.findall(r"`((?:jobs|pipelines|musev|tests|docs|\.ci)/[\w./]*\w)`", text)
    missing = [name for name in links if not (ROOT / page).parent.joinpath(name).exists()]
    missing += [name for name in code if not (ROOT / name).exists()]
    assert missing == []


# cluster.yaml


def _check_cluster_file(config: dict[str, Any]) -> dict[str, Any]:
    """Check a cluster file as ``ray up`` does, without a cloud; the functions are Ray's own."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def _cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_file_is_valid() -> None:
    prepared = _check_cluster_file(_cluster())
    kinds = prepared["available_node_types"]
    assert kinds["gpu-worker"]["min_workers"] == 0
    assert kinds["gpu-worker"]["max_workers"] == 8
    most = sum(kinds[name]["max_workers"] for name in ("cpu-worker", "gpu-worker"))
    assert prepared["max_workers"] == most


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"head_node_type": "nobody"}, "head_node_type"),
        ({"max_wokers": 3}, "max_wokers"),
        ({"docker": {"image": "a", "containername": "b"}}, "container"),
        ({"setup_commands": [7]}, "7 is not of type"),
    ],
)
def test_cluster_check_refuses_mistakes(change: dict[str, Any], phrase: str) -> None:
    with pytest.raises((AssertionError, ValueError, ValidationError), match=phrase):
        _check_cluster_file(_cluster() | change)


def test_cluster_file_installs_what_the_constraints_pin() -> None:
    config = _cluster()
    commands = " ".join(config["setup_commands"])
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for package in ("torch", "torchvision"):
        pin = next(line for line in pins if line.startswith(f"{package}=="))
        assert pin in commands
    ray = next(line for line in pins if line.startswith("ray=="))
    assert config["docker"]["image"].split(":")[1].startswith(ray.removeprefix("ray=="))


# Makefile and .ci


def _make(*goals: str) -> str:
    done = subprocess.run(
        ["make", "--dry-run", *goals], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    ("goal", "command"),
    [
        ("demo", "python -m jobs.demo"),
        ("test", '-m "not slow and not faults and not gpu"'),
        ("test-all", '-m "not gpu"'),
        ("lint", "lint-imports"),
    ],
)
def test_make_sets_up_before_it_does_anything(goal: str, command: str) -> None:
    lines = _make(goal)
    assert lines.index(".ci/setup") < lines.index(command)


def test_make_help_lists_every_goal() -> None:
    makefile = (ROOT / "Makefile").read_text()
    goals = next(line for line in makefile.splitlines() if line.startswith(".PHONY")).split()[1:]
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert [goal for goal in goals if goal != "help" and f"make {goal}" not in shown] == []


STUB = """#!/bin/sh
# Stands in for a Python: makes an environment that holds a copy of itself, and records pip's work.
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *"-m pip install"*) echo "$*" >> pip.log; [ ! -e break ] || { echo "no space left"; exit 7; } ;;
  *"-m pip --version"*|"-c"*) exit {version_status} ;;
  "--version") echo "Python 3.11.0 (stub)" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What ``.ci/setup`` reads, and an interpreter that installs nothing."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "setup", tmp_path / ".ci" / "setup")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    _write_stub(tmp_path / "python")
    return tmp_path


def _write_stub(path: Path, *, version_status: int = 0) -> None:
    path.write_text(STUB.replace("{version_status}", str(version_status)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _set_up(checkout: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": str(checkout / "python")}
    return subprocess.run(
        ["bash", str(checkout / ".ci" / "setup")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _installs(checkout: Path) -> list[str]:
    log = checkout / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


def test_setup_installs_torch_first_and_says_what_it_does(checkout: Path) -> None:
    done = _set_up(checkout)
    assert done.returncode == 0, done.stderr
    torch, rest, poses = _installs(checkout)
    assert "torch==" in torch
    assert "torchvision==" in torch
    assert rest.endswith("-c constraints.txt -e .[dev,pose]")
    assert "--no-deps --upgrade --target .venv/share/musev-pose" in poses
    assert "PyTorch and torchvision: 5.6 GB on disk, usually" in done.stdout
    assert "Set-up finished in" in done.stdout


def test_setup_is_done_once_until_the_dependencies_change(checkout: Path) -> None:
    _set_up(checkout)
    again = _set_up(checkout)
    assert (again.returncode, again.stdout) == (0, "")
    assert len(_installs(checkout)) == 3

    pyproject = checkout / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("line-length = 100", "line-length = 99"))
    _set_up(checkout)
    assert len(_installs(checkout)) == 3  # a tool's setting is no dependency

    pyproject.write_text(pyproject.read_text().replace('"einops>=0.8.2"', '"einops>=0.8.1"'))
    assert "Bringing .venv up to date" in _set_up(checkout).stdout
    assert len(_installs(checkout)) == 6


def test_setup_goes_on_without_the_pose_models(checkout: Path) -> None:
    python = checkout / "python"
    text = python.read_text()
    python.write_text(
        text.replace('*"-m pip install"*)', '*musev-pose*) exit 1 ;;\n  *"-m pip install"*)')
    )
    done = _set_up(checkout)
    assert done.returncode == 0, done.stderr
    assert "Going on without the pose engine 'embedded'" in done.stderr
    assert len(_installs(checkout)) == 2


def test_setup_that_fails_shows_why_and_is_repeated(checkout: Path) -> None:
    (checkout / "break").touch()
    done = _set_up(checkout)
    assert done.returncode == 7
    assert "no space left" in done.stderr
    (checkout / "break").unlink()
    assert _set_up(checkout).returncode == 0
    assert len(_installs(checkout)) == 4


def test_setup_refuses_another_python(checkout: Path) -> None:
    _write_stub(checkout / "python", version_status=1)
    done = _set_up(checkout)
    assert done.returncode != 0
    assert "No Python 3.10, 3.11 or 3.12 found" in done.stderr
    assert _installs(checkout) == []
