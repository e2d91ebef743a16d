"""controlnet_aux is imported quietly, with mediapipe out of sight."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import pytest

from musev.control.aux_library import import_controlnet_aux

LOUD = """
import warnings
warnings.warn("loud")
try:
    import mediapipe
except ImportError:
    mediapipe = None
"""


@pytest.fixture
def loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "loud_library.py").write_text(LOUD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "loud_library", raising=False)
    return "loud_library"


@pytest.mark.parametrize("there_before", [True, False])
def test_mediapipe_is_hidden_for_the_import_only(
    loud: str, there_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mediapipe = types.ModuleType("mediapipe")
    if there_before:
        monkeypatch.setitem(sys.modules, "mediapipe", mediapipe)
    else:
        monkeypatch.delitem(sys.modules, "mediapipe", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = import_controlnet_aux(loud)
    assert module.mediapipe is None
    assert sys.modules.get("mediapipe") is (mediapipe if there_before else None)
    assert ("mediapipe" in sys.modules) is there_before
    assert import_controlnet_aux(loud) is module


def test_a_failing_import_leaves_mediapipe_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    mediapipe = types.ModuleType("mediapipe")
    monkeypatch.setitem(sys.modules, "mediapipe", mediapipe)
    with pytest.raises(ImportError):
        import_controlnet_aux("no_such_library_anywhere")
    assert sys.modules["mediapipe"] is mediapipe
