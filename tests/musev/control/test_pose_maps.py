"""Pose maps draw what their name says, at any size as wide as at 512 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musev.config import ControlConfig
from musev.control.control_names import CONTROLS
from musev.control.person import FramePoses
from musev.control.pose_drawing import draw_people
from musev.control.pose_maps import PoseDetector, describe_pose_engine, draw_scaled
from musev.errors import WeightsError
from tests.musev.control.test_pose_drawing import two_people

PEOPLE = tuple(two_people())


class Known:
    """An engine that finds the same people in every frame but the first, which is empty."""

    def find(self, frames_TYXC: np.ndarray) -> list[FramePoses]:
        return [PEOPLE if n else () for n in range(len(frames_TYXC))]


def test_at_512_pixels_the_map_is_the_originals() -> None:
    drawn = draw_scaled(PEOPLE, ("body", "hands"), height=512, width=768, min_confidence=0.3)
    expected = draw_people(PEOPLE, height=512, width=768, parts=("body", "hands"))
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("short", [192, 256, 1024])
def test_limbs_are_as_wide_in_pictures_at_any_size(short: int) -> None:
    def covered(height: int) -> float:
        size = {"height": height, "width": height * 3 // 2}
        return (draw_scaled(PEOPLE, ("body",), **size, min_confidence=0.3).max(2) > 60).mean()

    assert covered(short) == pytest.approx(covered(512), rel=0.12)


@pytest.mark.parametrize("name", [name for name, control in CONTROLS.items() if control.parts])
def test_each_name_draws_its_parts_and_no_other(name: str) -> None:
    parts = CONTROLS[name].parts
    maps_TYXC, poses = PoseDetector(Known(), parts, min_confidence=0.3).detect(
        np.zeros((2, 512, 512, 3), np.uint8)
    )
    assert not maps_TYXC[0].any()
    expected = draw_people(PEOPLE, height=512, width=512, parts=parts)
    np.testing.assert_array_equal(maps_TYXC[1], expected)
    assert expected.any()
    assert poses == [(), PEOPLE]


def test_unsure_points_are_left_out() -> None:
    sure = draw_scaled(PEOPLE, ("body",), height=128, width=128, min_confidence=0.3)
    none = draw_scaled(PEOPLE, ("body",), height=128, width=128, min_confidence=0.95)
    assert sure.any()
    assert not none.any()


def test_moved_people_are_drawn_again_without_looking() -> None:
    detector = PoseDetector(Known(), ("body",), min_confidence=0.3)
    drawn = detector.draw([PEOPLE, ()], 64, 96)
    assert drawn.shape == (2, 64, 96, 3)
    assert drawn[0].any()
    assert not drawn[1].any()


def test_an_engines_description_follows_its_files_not_their_place(tmp_path: Path) -> None:
    told = []
    for number, content in enumerate((b"a", b"a", b"b")):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth"):
            (folder / name).write_bytes(content)
        (folder / "ControlNetHED.pth").write_bytes(bytes([number]))  # another detector's
        config = ControlConfig(pose_engine="controlnet_aux", weights={"annotators": str(folder)})
        told.append(describe_pose_engine(config))
    assert told[0] == told[1]
    assert told[0] != told[2]
    (tmp_path / "0" / "facenet.pth").unlink()
    lacking = ControlConfig(pose_engine="controlnet_aux", weights={"annotators": f"{tmp_path}/0"})
    with pytest.raises(WeightsError, match=r"/0 does not hold facenet\.pth"):
        describe_pose_engine(lacking)
    with pytest.raises(WeightsError, match=r"control\.weights\.mmpose=FOLDER"):
        describe_pose_engine(ControlConfig(pose_engine="mmpose"))
