"""What controls a row: names, maps that are there or have to be made, and what of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from musev.config import Profile
from musev.control.control_names import CONTROLS
from musev.control.controlnets import controlnet_for
from musev.weight_parts import controlnet_names
from pipelines.checks import nearest_hint, shorten

RECOMMENDED_POSE = "dwpose_body_hand"
"""What is found in a driving video for a ControlNet of poses where the row names nothing; the
original recommends it."""
_NEEDS_SOURCE = (
    "video_is_control",
    "video_has_condition",
    "video_may_be_cut",
    "sample_rate",
    "align",
    "control",
    "control_scale",
    "control_start",
    "control_end",
    "start_from_video",
)


_NUMBERS = ("control_scale", "control_start", "control_end")


class BadControlError(Exception):
    """Arguments: column, message."""


def resolve_control(given: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """Resolve a row's columns of control.

    Args:
        given: Checked values by column.
        profile: Holds ControlNets and the settings of detectors.

    Returns:
        Fields of the request; none for a row without control.

    Raises:
        BadControlError: If columns do not fit together, or nothing reads the maps.
    """
    sources = [name for name in ("video", "keypoints") if name in given]
    if len(sources) == 2:
        raise BadControlError(
            "keypoints", "stand in place of a video, and the row has one. Give one."
        )
    if not sources:
        _refuse_aimless(given)
        return {}
    if sources == ["keypoints"] and given.get("video_is_control"):
        raise BadControlError(
            "video_is_control", "needs a video; keypoints are drawn. Leave it null."
        )
    is_control = bool(given.get("video_is_control"))
    own_map = given.get("video_has_condition") is False
    if own_map and "condition_image" not in given:
        raise BadControlError(
            "video_has_condition",
            "is false, so the condition image gets a map of its own, and the row has none. Give a "
            "condition_image, or leave this null.",
        )
    if own_map and next(iter(given.get("condition_index") or (0,))) != 0:
        raise BadControlError(
            "condition_index",
            "puts the condition image elsewhere than in front, where its own map stands "
            "(video_has_condition is false). Leave one of the two null.",
        )
    starts = bool(given.get("start_from_video"))
    _check_start(given, sources, starts=starts, is_control=is_control)
    frames = {
        sources[0]: given[sources[0]],
        "start_from_video": starts,
        "video_may_be_cut": bool(given.get("video_may_be_cut")),
        "sample_rate": given.get("sample_rate"),
        "condition_has_own_map": own_map,
    }
    if starts and not given.get("control"):
        return frames
    names = given.get("control") or _only_name(profile, found=not is_control)
    _check_names(names, profile, source=sources[0], found=own_map or not is_control)
    numbers = {column: tuple(given.get(column) or ()) for column in _NUMBERS}
    for column, found in numbers.items():
        if found and len(found) != len(names):
            raise BadControlError(
                column,
                f"has {len(found)} numbers for {len(names)} names in control "
                f"({', '.join(names)}). Give one number a name, or leave it null.",
            )
    return frames | {
        "video_is_control": is_control,
        "align": None if is_control else _align(given, names, profile),
        "control": tuple(names),
        **numbers,
    }


def _check_start(
    given: Mapping[str, Any], sources: Sequence[str], *, starts: bool, is_control: bool
) -> None:
    if starts and sources == ["keypoints"]:
        raise BadControlError(
            "start_from_video", "needs a video; keypoints are no pictures. Leave it null."
        )
    if starts and is_control:
        raise BadControlError(
            "start_from_video",
            "and video_is_control exclude each other: a clip does not start from control maps. Set "
            "one of them to false.",
        )


def _refuse_aimless(given: Mapping[str, Any]) -> None:
    nothing = (None, False, [], (), [1.0])
    for column in _NEEDS_SOURCE:
        value = given.get(column)
        if column == "video_has_condition":
            value = value is False
        if value not in nothing and value != "never":
            raise BadControlError(
                column,
                "needs a video, and the row has none. Give a video to follow, one whose frames "
                "are control maps, or keypoints; or leave this null.",
            )


def _only_name(profile: Profile, *, found: bool) -> tuple[str, ...]:
    held = controlnet_names(profile.weights)
    if len(held) > 1:
        raise BadControlError(
            "control",
            f"is needed: the weights hold several ControlNets ({', '.join(held)}). Name "
            + (
                "what is to be found in the video."
                if found
                else "the one that the video was made for."
            ),
        )
    if not held:
        raise BadControlError("video", f"cannot be followed: {_no_net('openpose', profile)}")
    if not found or held[0] in CONTROLS:
        return held
    if controlnet_for(RECOMMENDED_POSE, held) is None:
        raise BadControlError(
            "control", f"is needed: name what is to be found for ControlNet {held[0]!r}."
        )
    return (RECOMMENDED_POSE,)


def _check_names(names: Sequence[str], profile: Profile, *, source: str, found: bool) -> None:
    """Every name has a ControlNet; where maps are made, a detector that can make them."""
    held = controlnet_names(profile.weights)
    for place, name in enumerate(names):
        if name in names[:place]:
            raise BadControlError("control", f"{name!r} is named twice. Name every one once.")
        if found and name not in CONTROLS:
            readers = [other for other in CONTROLS if controlnet_for(other, [name]) is not None]
            hint = f" For ControlNet {name!r}: {', '.join(readers)}." if readers else ""
            raise BadControlError(
                "control",
                f"{shorten(name)} cannot be found in a picture; known are {', '.join(CONTROLS)}."
                f"{hint or nearest_hint(name)} If the video's frames are such maps already, set "
                "video_is_control to true.",
            )
        if controlnet_for(name, held) is None:
            raise BadControlError(
                "control", f"{shorten(name)} is unknown: {_no_net(name, profile)}"
            )
        if source == "keypoints" and not CONTROLS[name].parts:
            poses = ", ".join(other for other, control in CONTROLS.items() if control.parts)
            raise BadControlError(
                "control", f"{name!r} cannot be drawn from keypoints; these can: {poses}."
            )


def _no_net(wanted: str, profile: Profile) -> str:
    held = ", ".join(controlnet_names(profile.weights))
    net = CONTROLS[wanted].controlnet if wanted in CONTROLS else wanted
    setting = f"--set weights.controlnets.{net if net.isidentifier() else 'NAME'}=FOLDER"
    where = f"the weights of profile {profile.name!r} hold"
    if held:
        return f"{where} only {held}. Name one of these, or add the network with {setting}."
    return f"{where} no ControlNet. Add one with {setting}, or take the row out."


def _align(given: Mapping[str, Any], names: Sequence[str], profile: Profile) -> str | None:
    align = given.get("align") or profile.control.align
    if align == "never" or not any(CONTROLS[name].parts for name in names):
        return None
    if "condition_image" in given:
        return align
    if given.get("align") == "always":
        raise BadControlError(
            "align",
            "is 'always', but the row has no condition_image that people could be moved onto. Give "
            "one, or leave this null.",
        )
    return None
