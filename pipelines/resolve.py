"""From raw manifest rows to requests: every row gives a request or a failure, and never raises.

A failure names row, column, value and remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from PIL import Image

from musev.config import ClipRequest, Profile, SamplingConfig
from musev.denoise.places import places_of
from musev.errors import ConfigError, MediaError, MusevError, RequestError
from musev.lora_choice import LoraChoice, parse_lora
from musev.negative_prompts import missing_tokens
from musev.registry import get_profile
from pipelines.checks import check_value, media_uri, media_uris, nearest_hint, shorten
from pipelines.frame_sizes import scaled_side
from pipelines.resolve_control import BadControlError, resolve_control
from pipelines.rows import MANIFEST_COLUMNS, MAX_FRAMES, WHOLE_ROW, BadCell, RowFailure

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
        sampling = self._sampling(given, profile)
        if given.get("condition_index") and sampling.shots.num_frames is not None:
            raise _bad(
                "condition_index",
                "does not go together with shots: a shot goes on from its first frames. Leave "
                "condition_index or shot_frames null.",
            )
        return ClipRequest(
            request_id=given["request_id"],
            prompt=given.get("prompt", ""),
            negative_prompt=given.get("negative_prompt", profile.negative_prompt),
            condition_image=given.get("condition_image"),
            condition_index=tuple(given.get("condition_index") or ()),
            redraw=bool(given.get("redraw")),
            reference_image=given.get("reference_image"),
            ip_adapter_image=given.get("ip_adapter_image"),
            face_image=given.get("face_image"),
            face_embedding=tuple(given.get("face_embedding") or ()),
            loras=self._loras(given, profile),
            **self._control(given, profile),
            num_frames=given.get(
                "num_frames", 0 if {"video", "keypoints"} & set(given) else profile.num_frames
            ),
            fps=given.get("fps", float(profile.fps)),
            width=width,
            height=height,
            seed=given["seed"] if "seed" in given else seed_for(given["request_id"]),
            profile=profile.name,
            sampling=sampling,
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
                    given[name] = media_uris(column, given[name], self.base_uri)
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
        for part in ("weights", "precision", "encoder", "control"):
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
        if given.get("face_embedding") and "face_image" in given:
            raise _bad(
                "face_embedding",
                "is given besides face_image, which would be embedded as well. Give one of them.",
            )
        has_image = "condition_image" in given
        num_images = len(_several(given.get("condition_image")))
        if not has_image and not given.get("prompt", "").strip():
            raise _bad("prompt", "is empty and there is no condition_image. Give one of the two.")
        driven = {"video", "keypoints"} & set(given)  # it decides the length where nobody else does
        num_frames = given.get("num_frames", MAX_FRAMES if driven else profile.num_frames)
        if has_image and num_frames <= num_images:
            which = "frame 0 itself" if num_images == 1 else f"{num_images} frames themselves"
            raise _bad(
                "num_frames",
                f"must be at least {num_images + 1} with a condition_image, which is {which}. "
                f"Ask for {num_images + 1} frames or more.",
            )
        if given.get("redraw") and not has_image:
            raise _bad("redraw", "needs a condition_image, and the row has none. Give one.")
        if given.get("strength", 1) < 1 and not given.get("start_from_video"):
            raise _bad(
                "strength",
                "says how much is made anew of the video that a clip starts from, and this one "
                "starts from none. Set start_from_video, or leave strength null; redraw_strength "
                "is that of a redrawn condition image.",
            )
        if index := given.get("condition_index"):
            try:
                places_of(num_images, index, num_frames)
            except RequestError as problem:
                told = str(problem).removeprefix("condition_index ")
                raise _bad("condition_index", told) from None

    def _loras(self, given: Mapping[str, Any], profile: Profile) -> tuple[LoraChoice, ...]:
        """LoRAs of the row, else of its profile; a profile's paths start at the working folder."""
        here = Path.cwd().as_uri()
        named = {name: _absolute(file, here) for name, file in profile.weights.loras.items()}
        base_uri = self.base_uri if "loras" in given else here
        found = []
        for text in given.get("loras", profile.loras):
            try:
                lora = parse_lora(text, named, merge=profile.weights.lora_merge)
                found.append(dataclasses.replace(lora, file=media_uri(lora.file, base_uri)))
            except MusevError as problem:
                raise _bad("loras", str(problem)) from None
        return tuple(found)

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

    def _control(self, given: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
        try:
            return resolve_control(given, profile)
        except BadControlError as bad:
            raise _bad(*bad.args) from None

    def _size(self, given: Mapping[str, Any], profile: Profile) -> tuple[int, int]:
        ratio = given.get("img_length_ratio")
        sides = {"width": given.get("width"), "height": given.get("height")}
        if ratio is not None and None in sides.values() and "condition_image" in given:
            try:
                found = self.image_size(_several(given["condition_image"])[0])
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


def _absolute(file: str, base_uri: str) -> str:
    try:
        return media_uri(file, base_uri)
    except RequestError:
        return file  # told where it is used


def _usable_id(value: Any) -> str | None:
    try:
        return check_value(MANIFEST_COLUMNS["request_id"], value)
    except MusevError:
        return None


def _with_settings(base: SamplingConfig, settings: Mapping[str, Any]) -> SamplingConfig:
    # Grouped, so that settings which only fit together (window 3, overlap 1) are checked together.
    groups: dict[str, dict[str, Any]] = {}
    for dotted, value in settings.items():
        group, _, name = dotted.rpartition(".")
        groups.setdefault(group, {})[name] = value
    own = groups.pop("", {})
    parts = {
        group: dataclasses.replace(getattr(base, group), **values)
        for group, values in groups.items()
    }
    return dataclasses.replace(base, **parts, **own)


def _several(pictures: str | list[str] | None) -> list[str]:
    return [] if pictures is None else [pictures] if isinstance(pictures, str) else pictures
