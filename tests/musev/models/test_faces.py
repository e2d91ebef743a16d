"""Faces to embeddings: what is taken of what a detector finds, and what is told without."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musev.errors import RequestError, WeightsError
from musev.models.faces import FaceFinder, open_face_finder


@dataclass
class Face:
    normed_embedding: np.ndarray


def mean_colours(picture_YXC: np.ndarray) -> list[Any]:
    """Finds a face in every picture that is not black: its mean blue, green and red."""
    mean = picture_YXC.reshape(-1, 3).mean(axis=0)
    return [Face(mean), Face(-mean)] if mean.any() else []


def test_the_first_face_of_every_picture_is_taken() -> None:
    pictures = np.zeros((2, 4, 6, 3), np.uint8)
    pictures[0, ..., 0] = 200  # red
    pictures[1] = (1, 2, 3)
    found = FaceFinder(mean_colours).find(pictures)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 200], [3, 2, 1]]  # the detector is given BGR


def test_a_picture_without_a_face_says_which() -> None:
    pictures = np.ones((2, 4, 6, 3), np.uint8)
    pictures[1] = 0
    with pytest.raises(RequestError, match="picture 2 of face_image, cropped to 6x4"):
        FaceFinder(mean_colours).find(pictures)
    with pytest.raises(RequestError, match="found in face_image, cropped"):
        FaceFinder(mean_colours).find(pictures[1:])


def test_missing_models_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no \.onnx files"):
        open_face_finder(str(tmp_path / "models" / "buffalo_l"))


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "det.onnx").touch()
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(WeightsError, match=r"needs insightface.*musev\[face\]"):
        open_face_finder(str(tmp_path))
