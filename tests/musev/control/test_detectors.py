"""Every control name opens, or says which files it lacks; descriptions tell what decides a map."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from musev.config import ControlConfig
from musev.control.control_names import CONTROLS, WEIGHTS
from musev.control.detectors import describe_detector, open_detector
from musev.errors import RequestError, WeightsError
from tests.musev.control.random_weights import write_weights
from tests.musev.control.test_plain_maps import picture

PORTRAIT = Path(__file__).parents[4] / "shared" / "media" / "Mona_Lisa.jpg"
PLAIN = ("canny", "tile", "content", "lineart_standard")
NEED_FILES = [name for name, control in CONTROLS.items() if control.detector in WEIGHTS]


def frames(height: int = 100, width: int = 150) -> np.ndarray:
    one = picture(height, width)
    return np.stack([one, one[:, ::-1], one])


@pytest.mark.parametrize("name", PLAIN)
def test_maps_have_the_frames_size_and_do_not_depend_on_neighbours(name: str) -> None:
    detector = open_detector(name, ControlConfig(), device="cpu")
    given = frames()
    before = given.copy()
    maps_TYXC = detector.maps(given)
    assert maps_TYXC.shape == given.shape
    assert maps_TYXC.dtype == np.uint8
    assert maps_TYXC.std() > 1
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(maps_TYXC[0], maps_TYXC[2])
    assert (maps_TYXC[0] != maps_TYXC[1]).any()
    np.testing.assert_array_equal(detector.maps(given[1:2])[0], maps_TYXC[1])
    assert detector.maps(given[:0]).shape == (0, *given.shape[1:])


def test_tile_is_the_frame() -> None:
    maps_TYXC = open_detector("tile", ControlConfig(), device="cpu").maps(frames())
    np.testing.assert_array_equal(maps_TYXC, frames())


def test_thresholds_resolution_and_seed_reach_the_detectors() -> None:
    def one(name: str, **settings) -> np.ndarray:
        return open_detector(name, ControlConfig(**settings), device="cpu").maps(frames()[:1])[0]

    assert one("canny", canny_low=300.0, canny_high=400.0).mean() < one("canny").mean()
    assert (one("canny", resolution=256) != one("canny")).any()
    assert (one("content", seed=1) != one("content")).mean() > 0.3


@pytest.mark.parametrize("name", NEED_FILES)
def test_a_name_without_its_files_says_which_it_lacks(name: str) -> None:
    for use in (describe_detector, lambda *given: open_detector(*given, device="cpu")):
        with pytest.raises(WeightsError) as caught:
            use(name, ControlConfig())
        for file in WEIGHTS[CONTROLS[name].detector].names:
            assert file in str(caught.value)


def test_an_unknown_name_is_refused() -> None:
    for use in (describe_detector, lambda *given: open_detector(*given, device="cpu")):
        with pytest.raises(RequestError, match=r"no detector 'kanny'.*'canny'"):
            use("kanny", ControlConfig())


def test_a_network_runs_behind_the_interface(tmp_path: Path) -> None:
    write_weights("lineart", tmp_path)
    config = ControlConfig(weights={"annotators": str(tmp_path)}, resolution=64)
    maps_TYXC = open_detector("lineart", config, device="cpu").maps(frames()[:2])
    assert maps_TYXC.shape == (2, 100, 150, 3)
    assert maps_TYXC.std() > 1


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("canny", "canny_low", 50.0),
        ("canny", "canny_high", 250.0),
        ("canny", "resolution", 256),
        ("content", "seed", 3),
        ("lineart_standard", "resolution", 256),
    ],
)
def test_what_decides_a_map_is_in_its_description(name: str, setting: str, value) -> None:
    plain = ControlConfig()
    changed = dataclasses.replace(plain, **{setting: value})
    assert describe_detector(name, changed) != describe_detector(name, plain)


def test_what_does_not_decide_a_map_is_not() -> None:
    other = ControlConfig(seed=3, smoothing=0.5, align="never", weights={"annotators": "elsewhere"})
    assert describe_detector("canny", other) == describe_detector("canny", ControlConfig())
    assert describe_detector("tile", other) == describe_detector("tile", ControlConfig())


def test_a_description_knows_the_files_not_their_place(tmp_path: Path) -> None:
    told = []
    for number, content in enumerate((b"a", b"a", b"b")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "ControlNetHED.pth").write_bytes(content)
        told.append(describe_detector("hed", ControlConfig(weights={"hed": str(folder)})))
    assert told[0] == told[1]
    assert told[0] != told[2]
    assert str(tmp_path) not in str(told)


def test_hed_and_its_scribble_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "ControlNetHED.pth").write_bytes(b"a")
    config = ControlConfig(weights={"annotators": str(tmp_path)})
    assert describe_detector("hed", config) != describe_detector("hed_scribble", config)


def test_a_pose_name_finds_and_draws_a_real_person() -> None:
    if not PORTRAIT.is_file():
        pytest.skip(f"no {PORTRAIT}")
    try:
        told = describe_detector("dwpose_body_hand", ControlConfig())
        detector = open_detector("dwpose_body_hand", ControlConfig(), device="cpu")
    except WeightsError as error:
        pytest.skip(str(error))
    assert told["parts"] == "body,hands"
    assert told["weights pose_landmarker.task"].startswith("sha256:4eaa5eb7")
    picture = Image.open(PORTRAIT).convert("RGB")
    picture.thumbnail((512, 768))
    frames_TYXC = np.stack([np.asarray(picture), np.zeros((*picture.size[::-1], 3), np.uint8)])
    maps_TYXC, poses = detector.detect(frames_TYXC)
    assert [len(people) for people in poses] == [1, 0]
    assert not maps_TYXC[1].any()
    np.testing.assert_array_equal(detector.maps(frames_TYXC), maps_TYXC)
    neck, nose = poses[0][0].body_K3[1], poses[0][0].body_K3[0]
    # She sits in the middle; her chin is a quarter down the picture (looked up by eye).
    assert 0.35 < neck[0] < 0.65
    assert nose[1] < 0.33 < neck[1] + 0.05
    assert maps_TYXC[0].any()
