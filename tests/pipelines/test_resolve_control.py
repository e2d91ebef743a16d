"""Columns of control together: what is made, of what, for which ControlNet; or a reason."""

from __future__ import annotations

from typing import Any

import pytest

from musev.config import Profile, WeightsConfig
from musev.settings import replace_setting, replace_settings
from pipelines.resolve_control import BadControlError, resolve_control

SEEDED = Profile(name="mini", weights=WeightsConfig(random_seed=0))  # holds ControlNet openpose
BARE = Profile(name="bare", weights=WeightsConfig(t2i="a", motion="b"))
TWO = replace_setting(SEEDED, "weights.controlnets.canny", "/nets/canny")


def test_a_driving_video_gets_poses_unless_the_row_names_something() -> None:
    found = resolve_control({"video": "v.mp4"}, SEEDED)
    assert (found["video"], found["video_is_control"]) == ("v.mp4", False)
    assert found["control"] == ("dwpose_body_hand",)
    assert not found["condition_has_own_map"]
    named = resolve_control({"video": "v.mp4", "control": ["canny", "pose_face"]}, TWO)
    assert named["control"] == ("canny", "pose_face")


def test_the_condition_image_gets_its_own_map_only_where_it_is_no_frame_of_the_video() -> None:
    row = {"video": "v.mp4", "condition_image": "c.png"}
    for has, own in ((None, False), (True, False), (False, True)):
        assert (
            resolve_control(row | {"video_has_condition": has}, SEEDED)["condition_has_own_map"]
            is own
        )
    given = row | {"video_is_control": True, "video_has_condition": False, "control": ["pose"]}
    assert resolve_control(given, SEEDED)["condition_has_own_map"]


def test_people_are_moved_onto_a_portrait_and_only_onto_one() -> None:
    row = {"video": "v.mp4", "condition_image": "c.png"}
    assert resolve_control(row, SEEDED)["align"] == "auto"
    assert resolve_control(row | {"align": "always"}, SEEDED)["align"] == "always"
    assert resolve_control(row | {"align": "never"}, SEEDED)["align"] is None
    never = replace_settings(SEEDED, {"control.align": "never"})
    assert resolve_control(row, never)["align"] is None
    assert resolve_control({"video": "v.mp4"}, SEEDED)["align"] is None
    assert resolve_control(row | {"control": ["canny"]}, TWO)["align"] is None
    assert resolve_control(row | {"video_is_control": True}, SEEDED)["align"] is None


def test_keypoints_stand_in_place_of_a_video() -> None:
    found = resolve_control({"keypoints": "k.parquet", "sample_rate": 2}, SEEDED)
    assert (found["keypoints"], found["sample_rate"]) == ("k.parquet", 2)
    assert "video" not in found


def test_a_row_without_control_has_none() -> None:
    nothing = {"video_has_condition": True, "video_may_be_cut": False, "align": "never"}
    assert resolve_control({"condition_image": "c.png", **nothing}, SEEDED) == {}


@pytest.mark.parametrize(
    ("row", "profile", "column", "phrase"),
    [
        ({"keypoints": "k", "video": "v"}, SEEDED, "keypoints", "Give one"),
        ({"keypoints": "k", "video_is_control": True}, SEEDED, "video_is_control", "Leave it null"),
        ({"keypoints": "k", "control": ["canny"]}, TWO, "control", "these can: pose, pose_body"),
        ({"sample_rate": 2}, SEEDED, "sample_rate", "needs a video, and the row has none"),
        ({"video_may_be_cut": True}, SEEDED, "video_may_be_cut", "needs a video"),
        ({"video_has_condition": False}, SEEDED, "video_has_condition", "needs a video"),
        ({"align": "always"}, SEEDED, "align", "needs a video"),
        ({"video": "v", "align": "always"}, SEEDED, "align", "no condition_image"),
        ({"video": "v", "video_has_condition": False}, SEEDED, "video_has_condition", "Give a con"),
        (
            {
                "video": "v",
                "video_has_condition": False,
                "condition_image": "i",
                "condition_index": [-1],
            },
            SEEDED,
            "condition_index",
            "elsewhere than in front",
        ),
        ({"video": "v", "control": ["canny"]}, SEEDED, "control", "weights.controlnets.canny="),
        ({"video": "v", "control": ["zoe"]}, BARE, "control", "weights.controlnets.depth=FOLDER"),
        ({"video": "v", "control": ["cany"]}, TWO, "control", "known are pose, pose_body"),
        (
            {"video": "v", "control": ["openpose"]},
            SEEDED,
            "control",
            "For ControlNet 'openpose': p",
        ),
        ({"video": "v"}, BARE, "video", "no ControlNet. Add one with"),
        ({"video": "v"}, TWO, "control", "what is to be found in the video"),
        ({"video": "v", "control": ["pose", "pose"]}, SEEDED, "control", "named twice"),
        ({"video": "v", "control_scale": [1.0, 2.0]}, SEEDED, "control_scale", "2 numbers for 1"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_column(
    row: dict[str, Any], profile: Profile, column: str, phrase: str
) -> None:
    with pytest.raises(BadControlError) as found:
        resolve_control(row, profile)
    assert found.value.args[0] == column
    assert phrase in found.value.args[1]
