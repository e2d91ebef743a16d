"""Engines are opened by name, and one that cannot run says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from musev.control.pose_engine import ENGINES, open_pose_engine
from musev.errors import ConfigError, WeightsError


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no pose engine 'openpose'.*embedded, mmpose"):
        open_pose_engine("openpose", {})


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_without_its_files_names_them_and_its_place_is_asked_first(
    name: str, tmp_path: Path
) -> None:
    place = tmp_path / name
    place.mkdir()
    weights = {name: str(place), "annotators": str(tmp_path / "other")}
    with pytest.raises(WeightsError, match=name) as caught:
        open_pose_engine(name, weights)
    first = {"embedded": "pose_landmarker.task", "mmpose": "mmpose", "controlnet_aux": "body_pose"}
    assert first[name] in str(caught.value)
    assert "other" not in str(caught.value)
