"""Find and read the original's recorded numbers (goldens).

``MUSEV_GOLDENS`` names any folder that holds ``models``, ``pipeline`` and ``fullsize``; the default
is ``../shared/goldens`` beside the repository. Without the folder the tests that need it are
skipped with a reason, except in CI (``CI`` or ``MUSEV_REQUIRE_GOLDENS`` set), where they fail.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = Path(os.environ.get("MUSEV_GOLDENS", ROOT.parent / "shared" / "goldens"))
REASON = f"no goldens at {GOLDENS}; set MUSEV_GOLDENS to a folder that holds them"


def have_goldens() -> bool:
    """Whether the folder of recorded numbers is there."""
    return (GOLDENS / "models" / "index.json").is_file()


def require_goldens() -> None:
    """Skip the calling test without goldens; fail it where they are required."""
    if have_goldens():
        return
    if os.environ.get("CI") or os.environ.get("MUSEV_REQUIRE_GOLDENS"):
        pytest.fail(REASON)
    pytest.skip(REASON)


@functools.cache
def model_index() -> dict[str, dict[str, Any]]:
    """Cases of ``models/index.json`` by name; empty without goldens."""
    if not have_goldens():
        return {}
    return json.loads((GOLDENS / "models" / "index.json").read_text())["cases"]


def model_cases(*kinds: str) -> list[Any]:
    """Parameters for :func:`pytest.mark.parametrize`: one case name each, of the given kinds."""
    names = [name for name, case in model_index().items() if case["kind"] in kinds]
    return names or [pytest.param("missing", marks=pytest.mark.parity)]


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file into freshly allocated tensors.

    The copies matter: unaligned buffers of a memory-mapped file change last bits (MODELS.md 8).
    """
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def model_case(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Read one model case.

    Args:
        name: Key of ``models/index.json``.

    Returns:
        ``(case, config, io)``: the index entry, its constructor config, and the recorded tensors
        (``in.*``, ``out.*``, ``mid.*``).
    """
    require_goldens()
    case = model_index()[name]
    folder = GOLDENS / "models"
    config = json.loads((folder / case["config"]).read_text()) if case.get("config") else {}
    return case, config, load_tensors(folder / case["io"])


def model_weights(case: dict[str, Any]) -> dict[str, Any]:
    """Weights of a model case as float32 (files hold exactly representable fp16)."""
    tensors = load_tensors(GOLDENS / "models" / case["weights"])
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def pipeline_case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read one pipeline case: its JSON and its tensors, shared tensors resolved."""
    require_goldens()
    folder = GOLDENS / "pipeline" / "cases"
    case = json.loads((folder / f"{name}.json").read_text())
    file = folder / f"{name}.safetensors"
    tensors = load_tensors(file) if file.is_file() else {}
    if case.get("shared_tensors"):
        shared = load_tensors(folder / "_shared.safetensors")
        tensors |= {key: shared[name] for key, name in case["shared_tensors"].items()}
    return case, tensors
