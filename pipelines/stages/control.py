"""Stage: make a stretch of control maps and put it to storage (one detector a name, for life).

Axes here: T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from musev.config import ControlConfig
from musev.control.align import align_people, needs_alignment, plan_alignment
from musev.control.control_names import CONTROLS
from musev.control.keypoints import fit_people, read_people, time_people
from musev.control.person import FramePoses, PoseVideo, PoseWriter, iter_poses, scan_poses
from musev.control.tracking import PoseReport, steady_people
from musev.errors import MediaError, RequestError, StorageError
from musev.media import (
    encode_png,
    fit_image,
    pick_frames,
    read_frames,
    read_image,
    time_frames,
    write_lossless,
)
from pipelines.control_units import KEYPOINTS, PEOPLE, PICTURE, STEADY, MapUnit, unit_from_json
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import FAILED, QUARANTINED, READY, Row, fail_row, worker_lost
from pipelines.progress import Pulse
from pipelines.resources import MAX_ATTEMPTS
from pipelines.scratch import scratch_folder
from pipelines.storage import digest_stream

STAGE = "control"
BATCH_FRAMES = 8
"""Frames that a detector is given at a time."""
OPEN_DETECTORS = 2
"""Detectors held at a time; with more names in a run they take turns."""

logger = logging.getLogger(__name__)

OpenDetector = Callable[[str, ControlConfig, str], Any]
"""Control name, settings and device to a :class:`musev.control.detectors.Detector`."""


def open_real_detector(name: str, config: ControlConfig, device: str) -> Any:
    """Open a detector; see :func:`musev.control.detectors.open_detector`."""
    from musev.control.detectors import open_detector  # on the worker, never on the driver

    return open_detector(name, config, device=device)


@dataclass(frozen=True, kw_only=True)
class MapSetup:
    """What a worker needs to know; picklable."""

    config: ControlConfig
    device: str
    ledger: Ledger
    cache: MediaCache
    open_detector: OpenDetector = open_real_detector


class MakeMaps:
    """Make units of maps and put them to storage.

    Reads ``name`` (the unit's key) and ``unit`` (JSON of a :class:`MapUnit`); adds ``record``
    (JSON) and ``status``: ``ready``; or ``failed`` or ``quarantined`` with the ``error_*`` columns.
    A unit that is there already is not made again. An attempt is counted in storage before any work
    is done, so a unit that takes its process down is known.

    Args:
        setup: With what and where.
        pulse: Told that work goes on.
    """

    def __init__(self, setup: MapSetup, pulse: Pulse) -> None:
        self._setup = setup
        self._ledger, self._cache = setup.ledger, setup.cache
        self._pulse = pulse
        self._folder = scratch_folder()
        self._detectors: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, row: Row) -> Row:
        """Bring one unit to its end."""
        unit = unit_from_json(row["unit"])
        done = self._ledger.store.read_if_present(unit.path(".json"))
        if done is not None:
            return _outcome(row, done)
        attempt_id, number = self._ledger.begin_attempt(unit.key)
        if number > MAX_ATTEMPTS:
            self._ledger.clear_work(unit.key)
            error = worker_lost(MAX_ATTEMPTS, "making control maps for this row")
            return fail_row(row, stage=STAGE, error=error, status=QUARANTINED)
        try:
            record = self._make(unit)
        except StorageError:  # nobody's row's fault: it is started again
            self._ledger.release_attempt(unit.key, attempt_id)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the other units go on
            self._ledger.clear_work(unit.key)
            return fail_row(row, stage=STAGE, error=error, status=FAILED)
        self._ledger.clear_work(unit.key)
        return _outcome(row, record)

    def _make(self, unit: MapUnit) -> bytes:
        """Make a unit's files; returns the record that counts."""
        started = time.monotonic()
        suffix = ".png" if unit.column == PICTURE else ".mkv"
        local, people = (self._folder / f"{unit.key}{end}" for end in (suffix, ".parquet"))
        try:
            if unit.column == STEADY:
                counts = self._steady(unit, people)
            else:
                counts = self._draw(unit, local, people)
            record = {
                **counts,
                "control": unit.control,
                "map": self._put(unit, suffix, local) if local.exists() else None,
                "people": self._put(unit, ".parquet", people) if people.exists() else None,
                "unit": json.loads(unit.to_json()),
                "seconds": round(time.monotonic() - started, 3),
                "run_id": self._ledger.run_id,
                "token": uuid.uuid4().hex,
            }
        finally:
            local.unlink(missing_ok=True)
            people.unlink(missing_ok=True)
        return self._ledger.store.create(unit.path(".json"), json.dumps(record).encode())

    def _draw(self, unit: MapUnit, local: Path, people: Path) -> dict[str, Any]:
        """Make a unit's maps, unless they are those of another unit."""
        with self._cache.open_file(unit.uri, unit.digest) as (_, source):
            alignment = self._alignment(unit)
            unmoved = unit.column == PEOPLE and alignment is None
            return {} if unmoved else self._write(unit, source, alignment, local, people)

    def _steady(self, unit: MapUnit, people: Path) -> dict[str, Any]:
        """Follow one person through all pieces; returns a report of what was found of it."""

        def found() -> Iterator[FramePoses]:
            for number, place in enumerate(unit.sources):
                with self._cache.open_file(place["uri"], place["digest"]) as (_, path):
                    yield from iter_poses(path)
                self._pulse.row(unit.key, STAGE, number + 1, len(unit.sources))

        video = PoseVideo(num_frames=unit.stop, width=unit.width, height=unit.height, fps=unit.fps)
        report = PoseReport()
        with PoseWriter(people, video) as sink:
            for persons in steady_people(found(), **json.loads(unit.detector[STEADY])):
                report.add(persons)
                sink.write(persons)
        return {"frames": report.num_frames, "report": report.as_dict()}

    def _put(self, unit: MapUnit, suffix: str, local: Path) -> dict[str, Any]:
        """Create an object; what another process has put there first is taken over."""
        path = unit.path(suffix)
        with local.open("rb") as stream:
            digest, size = digest_stream(stream)
        if not self._ledger.store.create_from_file(path, local):
            digest, size = self._ledger.store.digest(path)
        return {"path": path, "digest": f"sha256:{digest}", "bytes": size}

    def _alignment(self, unit: MapUnit) -> Any:
        """How people are moved onto the portrait's; None where they stay."""
        if unit.column != PEOPLE:
            return None
        found = []
        for place in (unit.portrait, unit.leader):
            with self._cache.open_file(place["uri"], place["digest"]) as (_, path):
                found.append(next(iter_poses(path), ()))
        return choose_alignment(*found, aspect=unit.width / unit.height, how=unit.align)

    def _write(
        self, unit: MapUnit, source: Path, alignment: Any, local: Path, people: Path
    ) -> dict[str, int]:
        counts = {"frames": 0, "frames_without_people": 0}
        with ExitStack() as stack:
            sink = None
            if CONTROLS[unit.control].parts:
                video = PoseVideo(
                    num_frames=unit.stop - unit.first,
                    width=unit.width,
                    height=unit.height,
                    fps=unit.fps,
                )
                sink = stack.enter_context(PoseWriter(people, video))

            def maps() -> Iterator[np.ndarray]:
                for maps_TYXC, found in self._maps(unit, source, alignment):
                    for map_YXC, persons in zip(maps_TYXC, found, strict=True):
                        counts["frames"] += 1
                        counts["frames_without_people"] += persons == ()
                        if sink is not None and persons is not None:
                            sink.write(persons)
                        yield map_YXC
                    self._pulse.row(unit.key, STAGE, counts["frames"], unit.stop - unit.first)

            if unit.column == PICTURE:
                local.write_bytes(encode_png(next(maps())))
            else:
                write_lossless(local, maps(), fps=unit.fps)
        return counts

    def _maps(
        self, unit: MapUnit, source: Path, alignment: Any
    ) -> Iterator[tuple[np.ndarray, list[FramePoses] | list[None]]]:
        """Maps of a batch of frames, and the people in each where they are known."""
        if unit.column in (KEYPOINTS, PEOPLE):
            yield from _drawn(unit, _people(unit, source, alignment))
            return
        detector = self._detector(unit.control)
        with closing(_frames(unit, source)) as frames:
            while batch := list(islice(frames, BATCH_FRAMES)):
                frames_TYXC = np.stack(batch)
                if CONTROLS[unit.control].parts:
                    yield detector.detect(frames_TYXC)
                else:
                    yield detector.maps(frames_TYXC), [None] * len(batch)

    def _detector(self, name: str) -> Any:
        if name not in self._detectors:
            while len(self._detectors) >= OPEN_DETECTORS:
                self._detectors.popitem(last=False)
            setup = self._setup
            self._detectors[name] = setup.open_detector(name, setup.config, setup.device)
        self._detectors.move_to_end(name)
        return self._detectors[name]


def _frames(unit: MapUnit, source: Path) -> Generator[np.ndarray]:
    """The unit's frames at its size, one after another."""
    size: dict[str, Any] = {"width": unit.width, "height": unit.height}
    if unit.column == PICTURE:
        how = "bicubic" if unit.upstream_fit else "lanczos"
        picture_YXC = read_image(source, name=f"{unit.column} {unit.uri}")
        yield fit_image(picture_YXC, **size, resampling=how, exact_upstream=unit.upstream_fit)
        return
    how = "bilinear" if unit.upstream_fit else "lanczos"
    try:
        times = time_frames(source, may_be_cut=unit.may_be_cut)
        numbers = pick_frames(times, fps=unit.fps, sample_rate=unit.sample_rate)
        with closing(read_frames(source, times, numbers[unit.first : unit.stop])) as frames:
            for frame_YXC in frames:
                yield fit_image(frame_YXC, **size, resampling=how, exact_upstream=unit.upstream_fit)
    except MediaError as error:
        told = str(error).replace(f"file:{source}", unit.uri).replace(str(source), unit.uri)
        raise MediaError(f"video {told}") from None


def _people(unit: MapUnit, source: Path, alignment: Any) -> Iterator[FramePoses]:
    """The unit's people at its size, frame by frame."""
    if unit.column == PEOPLE:
        for people in iter_poses(source):
            yield align_people(people, alignment)
        return
    video = scan_poses(source)
    times = time_people(source, fps=unit.fps)
    numbers = pick_frames(times, fps=unit.fps, sample_rate=unit.sample_rate)
    for people in read_people(source, numbers[unit.first : unit.stop]):
        yield fit_people(people, video, width=unit.width, height=unit.height)


def _drawn(
    unit: MapUnit, frames: Iterator[FramePoses]
) -> Iterator[tuple[np.ndarray, list[FramePoses]]]:
    from musev.control.pose_maps import draw_scaled

    for people in frames:
        map_YXC = draw_scaled(
            people,
            CONTROLS[unit.control].parts,
            width=unit.width,
            height=unit.height,
            min_confidence=float(unit.detector["min_confidence"]),
        )
        yield map_YXC[None], [people]


def choose_alignment(portrait: FramePoses, leader: FramePoses, *, aspect: float, how: str) -> Any:
    """Decide how a video's people are moved onto the person of a portrait.

    Args:
        portrait: People in the portrait.
        leader: People in the first frame of the video.
        aspect: Width over height of both.
        how: ``auto`` or ``always``.

    Returns:
        A :class:`musev.control.align.Alignment`; None where they stay: with ``auto``, where the two
        are in the same place, or nobody is in one of them.

    Raises:
        RequestError: If it cannot be measured, or would deform the figure.
    """
    if not portrait or not leader:
        if how == "auto":
            return None
        where = "first frame of the video" if portrait else "condition image"
        raise RequestError(
            f"align: nobody was found in the {where}. Give another one, or set align to never."
        )
    if how == "auto" and not needs_alignment(portrait[0], leader[0], reference_aspect=aspect):
        return None
    return plan_alignment(portrait[0], leader[0], reference_aspect=aspect, video_aspect=aspect)


def _outcome(row: Row, record: bytes) -> Row:
    return {
        **row,
        "status": READY,
        "record": record.decode(),
        "error_class": "",
        "error_stage": "",
        "error_message": "",
        "error_traceback": "",
    }
