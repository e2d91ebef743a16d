"""The columns that travel: the manifest's, the results table's, and the tiny row between stages.

Owns names and types. What a manifest value may be is decided in ``pipelines.checks``; how a row
becomes a request in ``pipelines.manifest``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import pyarrow as pa

from musev.config import Align, Blend, ClipRequest, GuidanceSchedule, Layout, field_types, to_plain
from musev.errors import ConfigError

Kind = Literal[
    "text", "integer", "number", "flag", "texts", "numbers", "integers", "pictures", "json"
]
ConfigT = TypeVar("ConfigT")

MAX_FRAMES = 1_000_000
MAX_SIDE_PX = 8192
WHOLE_ROW = ""
"""Key under which a row that could not be read at all carries its :class:`BadCell`."""

_ARROW_TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "flag": pa.bool_(),
    "texts": pa.list_(pa.string()),
    "numbers": pa.list_(pa.float64()),
    "integers": pa.list_(pa.int64()),
    "pictures": pa.string(),  # one path, or a JSON list of several
    "json": pa.string(),
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One manifest column: its type, its range, and what it decides."""

    name: str
    kind: Kind = "text"
    low: float | None = None
    high: float | None = None
    above: float | None = None
    """Like ``low``, but the bound itself is not allowed."""
    choices: tuple[str, ...] = ()
    max_chars: int = 4096
    may_be_empty: bool = False
    is_media: bool = False
    sets: str = ""
    """Dotted setting of SamplingConfig that the value replaces; empty if it replaces none."""

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of the column in a Parquet manifest."""
        return _ARROW_TYPES[self.kind]


MANIFEST_COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column(name="request_id", max_chars=200),
        Column(name="prompt", may_be_empty=True, max_chars=20_000),
        Column(name="negative_prompt", may_be_empty=True, max_chars=20_000),
        Column(name="condition_image", kind="pictures", is_media=True),
        Column(name="condition_index", kind="integers", low=-MAX_FRAMES, high=MAX_FRAMES),
        Column(name="redraw", kind="flag"),
        Column(name="redraw_strength", kind="number", above=0, high=1, sets="first_frame.strength"),
        Column(name="reference_image", kind="pictures", is_media=True),
        Column(name="ip_adapter_image", kind="pictures", is_media=True),
        Column(name="face_image", kind="pictures", is_media=True),
        Column(name="face_embedding", kind="numbers", low=-1e6, high=1e6),
        Column(name="video", is_media=True),
        Column(name="start_from_video", kind="flag"),
        Column(name="video_is_control", kind="flag"),
        Column(name="video_has_condition", kind="flag"),
        Column(name="video_may_be_cut", kind="flag"),
        Column(name="sample_rate", kind="integer", low=1, high=MAX_FRAMES),
        Column(name="keypoints", is_media=True),
        Column(name="align", choices=get_args(Align)),
        Column(name="control", kind="texts"),
        Column(name="control_scale", kind="numbers", low=0, high=10),
        Column(name="control_start", kind="numbers", low=0, high=1),
        Column(name="control_end", kind="numbers", low=0, high=1),
        Column(name="num_frames", kind="integer", low=1, high=MAX_FRAMES),
        Column(name="fps", kind="number", above=0, high=240),
        Column(name="width", kind="integer", low=1, high=MAX_SIDE_PX),
        Column(name="height", kind="integer", low=1, high=MAX_SIDE_PX),
        Column(name="img_length_ratio", kind="number", above=0, high=100),
        Column(name="seed", kind="integer", low=0, high=2**63 - 1),
        Column(name="steps", kind="integer", low=1, high=1000, sets="num_steps"),
        Column(name="guidance_scale", kind="number", low=0, high=1000, sets="guidance.scale"),
        Column(
            name="guidance_scale_end", kind="number", low=0, high=1000, sets="guidance.scale_end"
        ),
        Column(
            name="guidance_schedule", choices=get_args(GuidanceSchedule), sets="guidance.schedule"
        ),
        Column(name="window", kind="integer", low=1, high=MAX_FRAMES, sets="windows.num_frames"),
        Column(name="overlap", kind="integer", low=0, high=MAX_FRAMES, sets="windows.overlap"),
        Column(name="layout", choices=get_args(Layout), sets="windows.layout"),
        Column(name="blend", choices=get_args(Blend), sets="windows.blend"),
        Column(name="motion_speed", kind="number", above=0, high=1e6, sets="motion_speed"),
        Column(name="w_ind_noise", kind="number", low=0, high=1, sets="w_ind_noise"),
        Column(name="img_weight", kind="number", low=0, high=1, sets="img_weight"),
        Column(name="strength", kind="number", above=0, high=1, sets="strength"),
        Column(name="shot_frames", kind="integer", low=1, high=MAX_FRAMES, sets="shots.num_frames"),
        Column(name="histogram_match", kind="flag", sets="histogram_match"),
        Column(
            name="first_frame_negative_prompt",
            may_be_empty=True,
            max_chars=20_000,
            sets="first_frame.negative_prompt",
        ),
        Column(name="loras", kind="texts"),
        Column(name="profile", max_chars=200),
        Column(name="extra", kind="json", may_be_empty=True, max_chars=1_000_000),
    )
}
"""Every manifest column, in the order of DESIGN.md section 7."""

MANIFEST_SCHEMA = pa.schema(
    [(column.name, column.arrow_type) for column in MANIFEST_COLUMNS.values()]
)

_TEXT_MAP = pa.map_(pa.string(), pa.string())
_NUMBER_MAP = pa.map_(pa.string(), pa.float64())
RESULTS_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("sample_id", pa.string()),
        ("status", pa.string()),
        ("video_uri", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),
        ("duration_s", pa.float64()),
        ("codec", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("profile", pa.string()),
        ("model_digests", _TEXT_MAP),
        ("steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("window", pa.int32()),
        ("overlap", pa.int32()),
        ("layout", pa.string()),
        ("scheduler", pa.string()),
        ("media_digests", _TEXT_MAP),
        ("attempts", pa.int32()),
        ("gpu_seconds", pa.float64()),
        ("stage_seconds", _NUMBER_MAP),
        ("error_class", pa.string()),
        ("error_stage", pa.string()),
        ("error_message", pa.string()),
        ("versions", _TEXT_MAP),
        ("metrics", _NUMBER_MAP),
        ("licences", _TEXT_MAP),
        ("extra", pa.string()),
    ]
)
"""DESIGN.md section 6, then ``extra``: the manifest's own column, handed through."""

_STATUSES = ("committed", "failed", "quarantined")


@dataclass(frozen=True)
class BadCell:
    """A manifest value that could not be read, standing where the value should be."""

    reason: str


TEXT_TO_POSE = "text_to_pose"
"""Stage of a row that fails because its poses could not be made."""


@dataclass(frozen=True, kw_only=True)
class RowFailure:
    """A manifest row that cannot be rendered, and what to do about it.

    ``row`` counts data rows from 1 (a CSV header is not counted). ``request_id`` is ``row-<n>``
    where the row has none that can be used.
    """

    request_id: str
    row: int
    column: str
    value: str
    error_class: str
    message: str
    stage: str = "manifest"

    @property
    def sample_id(self) -> str:
        """Stable name of the failure; there is no resolved request whose bytes could be hashed."""
        return hashlib.sha256(canonical_json(dataclasses.asdict(self)).encode()).hexdigest()

    def to_record(self) -> dict[str, Any]:
        """Return the failure under the column names of the results table."""
        return {
            "request_id": self.request_id,
            "sample_id": self.sample_id,
            "status": "failed",
            "error_class": self.error_class,
            "error_stage": self.stage,
            "error_message": self.message,
            "attempts": 0,
        }


def canonical_json(value: Any) -> str:
    """Write plain values as JSON with exactly one spelling, for hashing and for comparing.

    Args:
        value: Nested dicts with text keys, lists, text, numbers, booleans and None.

    Returns:
        Sorted keys, no spaces, non-ASCII text as it is.

    Raises:
        ConfigError: If a number is not finite or a value has no JSON form.
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"no canonical JSON for this value: {problem}") from None


def request_to_json(request: ClipRequest) -> str:
    """Write a request as canonical JSON; :func:`request_from_json` gives an equal one back."""
    return canonical_json(to_plain(request))


def request_from_json(text: str) -> ClipRequest:
    """Read a request that :func:`request_to_json` wrote; its checks run again.

    Args:
        text: The JSON.

    Returns:
        The request.

    Raises:
        ConfigError: If the text is not such JSON, or from another version with other settings.
    """
    try:
        plain = json.loads(text)
    except ValueError as problem:
        raise ConfigError(f"a request's JSON is damaged: {problem}") from None
    return from_plain(ClipRequest, plain)


def from_plain(kind: type[ConfigT], plain: Any) -> ConfigT:
    """Build a config from the nested plain values that ``to_plain`` made of it.

    Args:
        kind: Config class.
        plain: Field name to value; nested configs as nested dicts.

    Returns:
        The config; its checks have run.

    Raises:
        ConfigError: If fields are missing, unknown, or out of range.
    """
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{kind.__name__} must be an object, got {type(plain).__name__}")
    hints = field_types(kind)
    fields = {item.name for item in dataclasses.fields(kind)}
    if unknown := sorted(set(plain) - fields):
        raise ConfigError(f"{kind.__name__} has no setting {', '.join(map(repr, unknown))}")
    values = {
        name: from_plain(nested, value) if (nested := _nested(hints[name])) and value else value
        for name, value in plain.items()
    }
    try:
        return kind(**values)
    except TypeError as problem:
        raise ConfigError(f"{kind.__name__} is incomplete: {problem}") from None


def _nested(hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def stage_row(sample_id: str, request: ClipRequest) -> dict[str, str]:
    """The row that travels between stages: columns ``sample_id`` and ``request`` (JSON)."""
    return {"sample_id": sample_id, "request": request_to_json(request)}


def request_columns(request: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a request's plain form into the results columns that repeat it.

    Args:
        request: ``to_plain`` of a :class:`ClipRequest`.

    Returns:
        Results columns; without those that are measured from the encoded file.
    """
    sampling = request["sampling"]
    return {
        "request_id": request["request_id"],
        "prompt": request["prompt"],
        "negative_prompt": request["negative_prompt"],
        "seed": request["seed"],
        "profile": request["profile"],
        "steps": sampling["num_steps"],
        "guidance_scale": sampling["guidance"]["scale"],
        "window": sampling["windows"]["num_frames"],
        "overlap": sampling["windows"]["overlap"],
        "layout": sampling["windows"]["layout"],
        "scheduler": sampling["solver"],
        "extra": request.get("extra"),
    }


def results_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a commit record or a failure record into one row of the results table.

    Args:
        record: Values under results column names; other keys are left out. A plain request under
            ``request`` fills the columns that repeat it, unless the record sets them itself.

    Returns:
        Every results column, null where the record says nothing; maps as dicts.

    Raises:
        ConfigError: If the status is none of committed, failed and quarantined.
    """
    if record.get("status") not in _STATUSES:
        raise ConfigError(
            f"record of {record.get('request_id')!r}: status must be one of "
            f"{', '.join(_STATUSES)}; got {record.get('status')!r}"
        )
    request = record.get("request")
    if isinstance(request, str):
        request = json.loads(request)
    repeated = request_columns(request) if request else {}
    return {
        name: record[name] if record.get(name) is not None else repeated.get(name)
        for name in RESULTS_SCHEMA.names
    }


def results_table(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Build the results table from commit and failure records, in the order given."""
    rows = [results_row(record) for record in records]
    columns = []
    for field in RESULTS_SCHEMA:
        values = [row[field.name] for row in rows]
        if pa.types.is_map(field.type):
            values = [None if value is None else sorted(value.items()) for value in values]
        columns.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=RESULTS_SCHEMA)
