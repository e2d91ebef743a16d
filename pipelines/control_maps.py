"""Graph: rows whose control maps have to be made in, rows that name their maps out.

    rows -> [driver: units that are not in storage yet, each once] -> make maps (actors)

Runs before any render worker is started, so the whole cluster makes maps, and only for rows that
need some. What is in storage is not made again, whichever run or row it was made for.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from musev.config import ClipRequest, ControlConfig
from musev.control.control_names import CONTROLS
from musev.errors import MusevError, WeightsError
from pipelines.control_units import (
    STEADY,
    Descriptions,
    MapUnit,
    RowUnits,
    maps_to_json,
    units_of,
)
from pipelines.outcomes import READY, Row
from pipelines.progress import BoardView, Pulse
from pipelines.resources import (
    ClusterShape,
    apply_stage,
    control_args,
    one_row_a_block,
    plan_control_workers,
)
from pipelines.rounds import SILENCE_S, RemoteSigns, Rounds, run_rounds
from pipelines.rows import canonical_json, request_from_json
from pipelines.stages.control import MakeMaps, MapSetup

logger = logging.getLogger(__name__)

OnMaps = Callable[[int, int, int], None]
"""Told how many units are done, how many of them failed, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Detectors:
    """What decides the maps of each control name, or why they cannot be made."""

    known: Descriptions = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Control name to the reason: weights that are missing."""

    def of(self, request: ClipRequest) -> dict[str, Mapping[str, str]]:
        """Describe what makes a row's maps.

        Args:
            request: The row.

        Returns:
            Control name to description; empty for a row that needs no maps.

        Raises:
            WeightsError: If one of them cannot be made.
        """
        names = request.control if request.needs_maps else ()
        for name in names:
            if name in self.unusable and not _is_drawn(request, name):
                raise WeightsError(self.unusable[name])
        return {name: self._one(request, name) for name in names}

    def _one(self, request: ClipRequest, name: str) -> Mapping[str, str]:
        known = self.known[name]
        return {k: known[k] for k in _DRAWING if k in known} if _is_drawn(request, name) else known


_DRAWING = ("control", "version", "min_confidence", STEADY)
"""What decides a map that is drawn from given keypoints."""


def _is_drawn(request: ClipRequest, name: str) -> bool:
    parts = name in CONTROLS and CONTROLS[name].parts
    looks = request.condition_has_own_map or request.align is not None  # at the condition image
    return bool(parts) and request.maps_made_of == "keypoints" and not looks


def describe_detectors(requests: Sequence[ClipRequest], config: ControlConfig) -> Detectors:
    """Describe the detectors that rows need; a place without weights costs only its rows.

    Args:
        requests: Resolved requests.
        config: Settings of the detectors.

    Returns:
        The descriptions.

    """
    names = {name for request in requests if request.needs_maps for name in request.control}
    known, unusable = {}, {}
    for name in sorted(names):
        from musev.control.detectors import MAPS_VERSION, describe_detector

        drawing = {
            "control": name,
            "version": MAPS_VERSION,
            "min_confidence": repr(config.min_confidence),
        }
        try:
            known[name] = describe_detector(name, config)
        except MusevError as error:
            known[name], unusable[name] = drawing, str(error)
        if config.steadies and name in CONTROLS and CONTROLS[name].parts:
            known[name] = {**known[name], STEADY: _describe_steadying(config)}
    return Detectors(known=known, unusable=unusable)


def _describe_steadying(config: ControlConfig) -> str:
    settings = {"max_gap_frames": config.max_gap_frames, "smoothing": config.smoothing}
    return canonical_json(settings)


def make_maps(
    setup: MapSetup,
    shape: ClusterShape,
    rows: Sequence[Row],
    detectors: Detectors,
    *,
    on_maps: OnMaps = lambda done, failed, total: None,
    silence_s: float = SILENCE_S,
) -> list[Row]:
    """Make the control maps of rows that need some.

    Args:
        setup: With what and where.
        shape: Of the cluster.
        rows: Ready rows of the input stage.
        detectors: Of all names that the rows need.
        on_maps: Follows the progress.
        silence_s: Without a sign of life for so long, workers are started again.

    Returns:
        The rows in their order, with ``control_maps``: JSON of :func:`maps_to_json`, empty for rows
        without; or marked failed or quarantined, with the reason of the first unit that was.

    Raises:
        WorkersFailError: If units keep vanishing with their workers.
    """
    out_uri = setup.ledger.out_uri
    run = functools.partial(_run, setup=setup, shape=shape, on_maps=on_maps, silence_s=silence_s)
    planned = [_units(row, detectors) for row in rows]
    records: dict[str, Any] = {}
    failures: dict[str, Row] = {}
    # People have to be found before one is followed, and followed before all are moved.
    for plan in (None, RowUnits.with_steadied, RowUnits.with_redrawn, RowUnits.with_aligned):
        if plan is not None:
            planned = [
                {name: _planned(made, plan, records, out_uri) for name, made in row.items()}
                for row in planned
            ]
        units = [unit for row in planned for made in row.values() for unit in made.planned]
        made = run([unit for unit in units if unit.key not in records | failures])
        records, failures = records | made[0], failures | made[1]
    return [
        _finish(row, made, records, failures, out_uri)
        for row, made in zip(rows, planned, strict=True)
    ]


def _units(row: Row, detectors: Detectors) -> dict[str, RowUnits]:
    request = request_from_json(row["request"])
    digests = json.loads(row["media_digests"])
    return units_of(request, digests, row.get("video_frames", 0), detectors.of(request))


def _planned(
    made: RowUnits,
    plan: Callable[[RowUnits, Mapping[str, Any], str], RowUnits],
    records: Mapping[str, Any],
    out_uri: str,
) -> RowUnits:
    """Plan the next wave of a row whose earlier ones have all been made."""
    found = all(unit.key in records for unit in made.planned)
    return plan(made, records, out_uri) if found else made


def _find_records(setup: MapSetup, units: Collection[MapUnit]) -> dict[str, Any]:
    """Records of units that any run has made."""
    if not units:
        return {}
    store = setup.ledger.store
    there = store.list("control")
    wanted = [path for unit in units if (path := unit.path(".json")) in there]
    keys = {unit.path(".json"): unit.key for unit in units}
    return {keys[path]: json.loads(data) for path, data in store.read_many(wanted).items()}


def _run(
    wanted: Sequence[MapUnit],
    *,
    setup: MapSetup,
    shape: ClusterShape,
    on_maps: OnMaps,
    silence_s: float,
) -> tuple[dict[str, Any], dict[str, Row]]:
    """Make units that are not there; returns records and failures by key."""
    by_key = {unit.key: unit for unit in wanted}
    records = _find_records(setup, list(by_key.values()))
    units = [unit for key, unit in by_key.items() if key not in records]
    failures: dict[str, Row] = {}
    if not units:
        return records, failures
    on_maps(0, 0, len(units))
    num_workers = plan_control_workers(shape, len(units))
    rounds = Rounds(
        build=functools.partial(_maps_dataset, setup=setup, shape=shape, num_workers=num_workers),
        key="name",
        num_workers=num_workers,
        loads="what it needs to make control maps",
        silence_s=silence_s,
    )
    made: dict[str, Any] = {}

    def on_row(outcome: Row | None, view: BoardView) -> None:
        if outcome is None:
            return
        if outcome["status"] == READY:
            made[outcome["name"]] = json.loads(outcome["record"])
        else:
            failures[outcome["name"]] = outcome
        on_maps(len(made) + len(failures), len(failures), len(units))

    # A video's pieces one after another, so that what lies in a machine's page cache is used.
    waiting = {unit.key: {"name": unit.key, "unit": unit.to_json()} for unit in units}
    run_rounds(rounds, waiting, on_row)
    return records | made, failures


def _maps_dataset(
    rows: list[Row], *, setup: MapSetup, shape: ClusterShape, num_workers: int, board: Any
) -> Any:
    args = control_args(shape, num_workers)
    return apply_stage(one_row_a_block(rows), MakeMapsHere, args, setup=setup, board=board)


class MakeMapsHere:
    """The stage in a process of its own, which says on the board that it lives."""

    def __init__(self, *, setup: MapSetup, board: Any) -> None:
        self._pulse = Pulse(RemoteSigns(board))
        self._make = MakeMaps(setup, self._pulse)
        self._pulse.ready()

    def __call__(self, row: Row) -> Row:
        """Bring one unit to its end."""
        with self._pulse.working():
            return self._make(row)


def _finish(
    row: Row,
    made: Mapping[str, RowUnits],
    records: Mapping[str, Any],
    failures: Mapping[str, Row],
    out_uri: str,
) -> Row:
    for unit in (unit for units in made.values() for unit in units.planned):
        if (failed := failures.get(unit.key)) is not None:
            named = ("status", "error_class", "error_stage", "error_message", "error_traceback")
            return {**row, "control_maps": "", **{name: failed[name] for name in named}}
    return {**row, "control_maps": maps_to_json(made, records, out_uri) if made else ""}
