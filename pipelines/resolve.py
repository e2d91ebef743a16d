"""From raw manifest rows to requests: every row gives a request or a failure, and never raises.

A failure names row, column, value and remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
from PIL import Image

from musev.config import ClipRequest, Profile, SamplingConfig
from musev.errors import ConfigError, MediaError, MusevError, RequestError
from musev.negative_prompts import missing_tokens
from musev.registry import get_profile
from musev.weights import controlnet_names
from pipelines.checks import check_value, media_uri, nearest_hint, shorten
from pipelines.frame_sizes import scaled_side
from pipelines.rows import MANIFEST_COLUMNS, WHOLE_ROW, BadCell, RowFailure

# SyntaxError is what Pillow raises for some broken headers; ImportError is a missing driver.
_UNREADABLE = (OSError, ValueError, ImportError, SyntaxError, Image.DecompressionBombError)


def seed_for(request_id: str) -> int:
    """Seed of a request that names none: 63 bits of SHA-256 of ``musev:seed:<request_id>``."""
    digest = hashlib.sha256(f"musev:seed:{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def read_image_size(uri: str) -> tuple[int, int]:
    """Read width and height from an image's header.

    Args:
        uri: Absolute fsspec URI.

    Returns:
        ``(width, height)`` in pixels.

    Raises:
        MediaError: If the image is missing or no image.
    """
    try:
        with fsspec.open(uri, "rb") as handle, Image.open(handle) as image:
            return image.size
    except _UNREADABLE as problem:
        raise MediaError(
            f"size cannot be read from {uri} ({type(problem).__name__}: {problem}). "
            "Check the file, or give width and height."
        ) from None


def resolve_rows(
    raw_rows: Iterable[Mapping[str, Any]],
    profile: Profile,
    base_uri: str,
    *,
    find_profile: Callable[[str], Profile] = get_profile,
    image_size: Callable[[str], tuple[int, int]] = read_image_size,
) -> tuple[list[ClipRequest], list[RowFailure]]:
    """Turn raw rows into requests; every row gives either a request or a failure.

    Null takes the profile's value. ``seed`` is derived from ``request_id`` (:func:`seed_for`). With
    ``img_length_ratio`` a missing width or height is the condition image's (the profile's without
    one), both are multiplied by the ratio and rounded down to the profile's size multiple
    (ALGORITHM.md 5.1); without it sizes are taken as they are. With a ``video`` and no
    ``num_frames`` the length is left at 0: the video has it, and is measured where it is fetched.

    Args:
        raw_rows: Rows of :func:`read_manifest`.
        profile: The run's profile.
        base_uri: Folder that relative media paths start from.
        find_profile: Looks up a profile that a row names; it must share the run's weights.
        image_size: Reads the size of an image; called only for rows whose size depends on it.

    Returns:
        ``(requests, failures)``, both in row order.
    """
    resolver = _Resolver(
        profile=profile,
        base_uri=base_uri,
        find_profile=functools.cache(find_profile),
        image_size=functools.cache(image_size),
    )
    requests: list[ClipRequest] = []
    failures: list[RowFailure] = []
    for number, raw in enumerate(raw_rows, start=1):
        try:
            requests.append(resolver.resolve(number, raw))
        except _BadValue as bad:
            failures.append(resolver.failure(number, raw, bad))
    return requests, failures


class _BadValue(Exception):
    """Arguments: column, the error. Never leaves this module."""


@dataclass(kw_only=True)
class _Resolver:
    profile: Profile
    base_uri: str
    find_profile: Callable[[str], Profile]
    image_size: Callable[[str], tuple[int, int]]
    first_rows: dict[str, int] = field(default_factory=dict)
    samplings: dict[Any, SamplingConfig] = field(default_factory=dict)

    def resolve(self, number: int, raw: Mapping[str, Any]) -> ClipRequest:
        self._check_unique(number, raw.get("request_id"))
        given = self._checked(raw)
        profile = self._profile(given.get("profile"))
        self._check_complete(given, profile)
        self._check_tokens(given, profile)
        width, height = self._size(given, profile)
        return ClipRequest(
            request_id=given["request_id"],
            prompt=given.get("prompt", ""),
            negative_prompt=given.get("negative_prompt", profile.negative_prompt),
            condition_image=given.get("condition_image"),
            reference_image=given.get("reference_image"),
            ip_adapter_image=given.get("ip_adapter_image"),
            **self._control(given),
            num_frames=given.get("num_frames", 0 if "video" in given else profile.num_frames),
            fps=given.get("fps", float(profile.fps)),
            width=width,
            height=height,
            seed=given["seed"] if "seed" in given else seed_for(given["request_id"]),
            profile=profile.name,
            sampling=self._sampling(given, profile),
            extra=given.get("extra"),
        )

    def _check_unique(self, number: int, request_id: Any) -> None:
        if not isinstance(request_id, str):
            return
        first = self.first_rows.setdefault(request_id, number)
        if first != number:
            raise _bad(
                "request_id",
                f"is already the request_id of row {first}; only that row is rendered. "
                "Give every row its own.",
            )

    def _checked(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        given = {}
        for name, value in raw.items():
            if value is None:
                continue
            column = MANIFEST_COLUMNS.get(name)
            try:
                if isinstance(value, BadCell):
                    raise RequestError(value.reason)
                if column is None:
                    raise RequestError(f"is no manifest column.{nearest_hint(name)}")
                given[name] = check_value(column, value)
                if column.is_media:
                    given[name] = media_uri(given[name], self.base_uri)
            except RequestError as problem:
                raise _BadValue(name, problem) from None
        return given

    def _profile(self, name: str | None) -> Profile:
        if name is None or name == self.profile.name:
            return self.profile
        try:
            other = self.find_profile(name)
        except ConfigError as problem:
            raise _bad("profile", str(problem)) from None
        for part in ("weights", "precision", "encoder"):
            if getattr(other, part) != getattr(self.profile, part):
                raise _bad(
                    "profile",
                    f"profile {name!r} has other {part} than this run's {self.profile.name!r}, and "
                    f"a run holds one set. Put such rows into a run with --profile {name}.",
                )
        return other

    def _check_complete(self, given: Mapping[str, Any], profile: Profile) -> None:
        if "request_id" not in given:
            raise _bad("request_id", "is missing. Give every row a name of its own.")
        has_image = "condition_image" in given
        if not has_image and not given.get("prompt", "").strip():
            raise _bad("prompt", "is empty and there is no condition_image. Give one of the two.")
        if has_image and given.get("num_frames", profile.num_frames) < 2:
            raise _bad(
                "num_frames",
                "must be at least 2 with a condition_image, which is frame 0 itself. "
                "Ask for 2 frames or more.",
            )

    def _check_tokens(self, given: Mapping[str, Any], profile: Profile) -> None:
        held = getattr(profile.weights, "embeddings", ())
        for column in ("prompt", "negative_prompt"):
            if missing := missing_tokens(given.get(column, ""), held):
                raise _bad(
                    column,
                    f"names {', '.join(missing)}, of which profile {profile.name!r} holds no "
                    f"embedding. Give the file with --set weights.embeddings.{missing[0]}=FILE, or "
                    "take the word out (negative prompt V5 is V2 without such words).",
                )

    def _control(self, given: Mapping[str, Any]) -> dict[str, Any]:
        names, scales = given.get("control") or [], given.get("control_scale") or []
        if "video" not in given:
            asked = {
                "video_is_control": given.get("video_is_control"),
                "control": names,
                "control_scale": scales if scales != [1.0] else (),
            }
            if column := next((name for name, value in asked.items() if value), None):
                raise _bad(
                    column,
                    "needs a video, and the row has none. Give a video whose frames are control "
                    "maps, or leave this null.",
                )
            return {}
        if not given.get("video_is_control"):
            raise _bad(
                "video",
                "finding poses in a driving video is not supported yet, so "
                f"{shorten(given['video'])} cannot be honoured. If its frames are control maps "
                "already, set video_is_control to true; otherwise take the row out.",
            )
        names = names or self._only_control()
        self._check_control_names(names)
        if scales and len(scales) != len(names):
            raise _bad(
                "control_scale",
                f"has {len(scales)} numbers for {len(names)} names in control "
                f"({', '.join(names)}). Give one number a name, or leave it null.",
            )
        return {
            "video": given["video"],
            "video_is_control": True,
            "control": tuple(names),
            "control_scale": tuple(scales),
        }

    def _only_control(self) -> tuple[str, ...]:
        held = self._controlnets
        if len(held) > 1:
            raise _bad(
                "control",
                f"is needed: the weights hold several ControlNets ({', '.join(held)}). Name the "
                "one that the video was made for.",
            )
        if not held:
            raise _bad("video", f"cannot be followed: {self._no_controlnet('openpose')}")
        return held

    def _check_control_names(self, names: Sequence[str]) -> None:
        for place, name in enumerate(names):
            if name not in self._controlnets:
                raise _bad("control", f"{shorten(name)} is unknown: {self._no_controlnet(name)}")
            if name in names[:place]:
                raise _bad("control", f"{name!r} is named twice. Name every ControlNet once.")

    @functools.cached_property
    def _controlnets(self) -> tuple[str, ...]:
        return controlnet_names(self.profile.weights)

    def _no_controlnet(self, wanted: str) -> str:
        held = ", ".join(self._controlnets)
        setting = f"--set weights.controlnets.{wanted if wanted.isidentifier() else 'NAME'}=FOLDER"
        where = f"the weights of profile {self.profile.name!r} hold"
        if held:
            return f"{where} only {held}. Name one of these, or add the network with {setting}."
        return f"{where} no ControlNet. Add one with {setting}, or take the row out."

    def _size(self, given: Mapping[str, Any], profile: Profile) -> tuple[int, int]:
        ratio = given.get("img_length_ratio")
        sides = {"width": given.get("width"), "height": given.get("height")}
        if ratio is not None and None in sides.values() and "condition_image" in given:
            try:
                found = self.image_size(given["condition_image"])
            except MediaError as problem:
                raise _BadValue("condition_image", problem) from None
            sides = {name: sides[name] or size for name, size in zip(sides, found, strict=True)}
        sides = {name: value or getattr(profile, name) for name, value in sides.items()}
        step = profile.size_multiple
        if ratio is not None:
            scaled = {name: scaled_side(sides[name], ratio, multiple=step) for name in sides}
            for name, value in scaled.items():
                column = MANIFEST_COLUMNS[name]
                if not 0 < value <= (column.high or value):
                    raise _bad(
                        "img_length_ratio",
                        f"{name} {sides[name]} x {ratio:g}, rounded down to a multiple of {step}, "
                        f"is {value}; it must be {step} to {column.high:g}. Give another ratio.",
                    )
            return scaled["width"], scaled["height"]
        for name, value in sides.items():
            if value % step:
                near = [side for side in (value // step * step, (value // step + 1) * step) if side]
                raise _bad(
                    name,
                    f"must be a multiple of {step}, got {value}. "
                    f"Nearest: {' and '.join(map(str, near))}.",
                )
        return sides["width"], sides["height"]

    def _sampling(self, given: Mapping[str, Any], profile: Profile) -> SamplingConfig:
        settings = {
            column.sets: given[name] for name in given if (column := MANIFEST_COLUMNS[name]).sets
        }
        key = (profile.name, tuple(sorted(settings.items())))
        if key not in self.samplings:
            try:
                self.samplings[key] = _with_settings(profile.sampling, settings)
            except ConfigError as problem:
                named = [name for name in ("overlap", "window") if name in given] or ["window"]
                raise _bad(named[0], f"{problem}. Change window or overlap.") from None
        return self.samplings[key]

    def failure(self, number: int, raw: Mapping[str, Any], bad: _BadValue) -> RowFailure:
        column, problem = bad.args
        value = raw.get(column)
        request_id = _usable_id(raw.get("request_id")) or f"row-{number}"
        where = (
            f"row {number} ({request_id!r})" if request_id != f"row-{number}" else f"row {number}"
        )
        place = f"{where}, column {column!r}" if column != WHOLE_ROW else where
        return RowFailure(
            request_id=request_id,
            row=number,
            column=column,
            value="" if value is None or isinstance(value, BadCell) else shorten(value),
            error_class=type(problem).__name__,
            message=f"{place}: {problem}",
        )


def _bad(column: str, message: str) -> _BadValue:
    return _BadValue(column, RequestError(message))


def _usable_id(value: Any) -> str | None:
    try:
        return check_value(MANIFEST_COLUMNS["request_id"], value)
    except MusevError:
        return None


def _with_settings(base: SamplingConfig, settings: Mapping[str, Any]) -> SamplingConfig:
    # Grouped, so that settings which only fit together (window 3, overlap 1) are checked together.
    groups: dict[str, dict[str, Any]] = {"": {}, "windows": {}, "guidance": {}}
    for dotted, value in settings.items():
        group, _, name = dotted.rpartition(".")
        groups[group][name] = value
    return dataclasses.replace(
        base,
        windows=dataclasses.replace(base.windows, **groups["windows"]),
        guidance=dataclasses.replace(base.guidance, **groups["guidance"]),
        **groups[""],
    )
