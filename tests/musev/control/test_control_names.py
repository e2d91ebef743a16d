"""The table of control names holds the original's 26, and says what it does otherwise."""

from __future__ import annotations

import json

import pytest

from musev.control.control_names import CONTROLS, WEIGHTS, controlnet_of, find_control
from musev.errors import RequestError
from tests.goldens import GOLDENS, require_goldens

OTHER_NET = {"pidi", "face_detector"}
"""Names that we read with another ControlNet than the original."""
SWITCHES = {
    "pose_hand": {"hands"},
    "pose_face": {"face"},
    "pose_hand_body": {"body", "hands"},
    "pose_hand_face": {"hands", "face"},
    "dwpose_face": {"face"},
    "dwpose_hand": {"hands"},
    "dwpose_body": {"body"},
    "dwpose_body_hand": {"body", "hands"},
    "dwpose": {"body", "hands", "face"},
}
"""What each pose name says it draws."""


def _golden() -> dict:
    require_goldens()
    path = GOLDENS / "pipeline" / "functions" / "controlnet_table.json"
    return json.loads(path.read_text())


@pytest.mark.parity
def test_names_are_the_original_pipelines_in_its_order() -> None:
    assert list(CONTROLS)[:26] == _golden()["names"]


@pytest.mark.parity
def test_controlnets_are_the_original_pipelines_but_for_those_that_say_so() -> None:
    params = _golden()["params"]
    other = {
        name for name in params if CONTROLS[name].published != params[name]["controlnet_model_path"]
    }
    assert other == OTHER_NET
    assert all("ControlNet" in CONTROLS[name].differs for name in other)


@pytest.mark.parity
def test_weights_are_published_where_the_original_pipeline_looks() -> None:
    for name, params in _golden()["params"].items():
        weights = WEIGHTS.get(CONTROLS[name].detector)
        if weights is not None:
            assert weights.published.startswith(f"hf://{params['detector_id']}"), name


@pytest.mark.parity
def test_options_are_the_original_pipelines_but_for_the_forgotten_switch() -> None:
    ours = {"detect_resolution", "image_resolution"}
    for name, params in _golden()["params"].items():
        control = CONTROLS[name]
        if control.detector in WEIGHTS and name != "hed_scribble":
            theirs = {k: v for k, v in params["processor_params"].items() if k not in ours}
            assert theirs == control.options, name
    assert CONTROLS["hed_scribble"].options == {"scribble": True}


@pytest.mark.parametrize(("name", "parts"), SWITCHES.items())
def test_a_pose_name_draws_what_it_says(name: str, parts: set[str]) -> None:
    assert set(CONTROLS[name].parts) == parts


def test_detectors_of_one_controlnet_agree_on_where_it_is_published() -> None:
    places: dict[str, set[str]] = {}
    for control in CONTROLS.values():
        places.setdefault(control.controlnet, set()).add(control.published)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_only_poses_have_parts() -> None:
    assert {c.detector for c in CONTROLS.values() if c.parts} == {"pose"}
    assert all(c.parts for c in CONTROLS.values() if c.detector == "pose")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"no detector 'dwpose_hands'.*mean 'dwpose_hand'"):
        controlnet_of("dwpose_hands")
    assert controlnet_of("dwpose_body_hand") == "openpose"
    assert find_control("depth").detector == "midas"
