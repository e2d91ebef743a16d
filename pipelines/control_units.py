"""Stretches of control maps: what is made once for every row that needs it, and where it lies.

A map video is made in pieces, each an object of its own in storage, named by everything that
decides its pixels: so rows share pieces, machines share the work on a long video, what a lost
process had finished stays, and who renders a few frames fetches a few files.

Layout below the output URL, beside that of :mod:`pipelines.ledger`:

    control/<key[:2]>/<key>.mkv       the maps, every pixel as it was; .png for a picture's map
    control/<key[:2]>/<key>.parquet   the people found in those frames, for pose names
    control/<key[:2]>/<key>.json      the record, created last and only if absent
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from musev.config import ClipRequest
from musev.control.control_names import CONTROLS
from musev.control.controlnets import controlnet_for
from musev.weight_parts import CONTROLNETS, digests_in_use
from pipelines.rows import canonical_json

PIECE_FRAMES = 96
"""Frames of a piece: a lost process loses the work on so many at most."""
FORMAT_VERSION = 1
"""Part of every key; raised when the same settings would give other maps by our own doing."""
PICTURE = "condition_image"
KEYPOINTS = "keypoints"
PEOPLE = "people"
STEADY = "steady"
"""What a unit is made of that follows one person through all pieces; and, in a description, how."""


def digests_of(model_digests: Mapping[str, str], request: ClipRequest) -> dict[str, str]:
    """Digests of the networks that a clip is rendered with: of ControlNets, those it uses."""
    held = [part[len(CONTROLNETS) :] for part in model_digests if part.startswith(CONTROLNETS)]
    nets = [controlnet_for(name, held) or name for name in request.control]
    return digests_in_use(model_digests, request, controlnets=nets)


Descriptions = Mapping[str, Mapping[str, str]]
"""Control name to what decides its detector's output."""
Records = Mapping[str, Mapping[str, Any]]
"""Key of a unit to its record: ``map`` and ``people``, each ``path`` and ``digest``, or None."""


@dataclass(frozen=True, kw_only=True)
class MapUnit:
    """Some maps of one control name."""

    control: str
    column: str
    """What they are made of: ``video``, ``keypoints``, ``condition_image``; or ``people``, found by
    another unit, who are moved onto the person of a portrait; or ``steady``: no maps, but the
    people of all pieces, one of them followed."""
    uri: str
    digest: str
    detector: Mapping[str, str]
    width: int
    height: int
    upstream_fit: bool
    """Whether frames are cropped and resized as upstream does."""
    fps: float = 0.0
    """Rate of the maps; 0 for a picture's."""
    sample_rate: int | None = None
    may_be_cut: bool = False
    first: int = 0
    stop: int = 1
    """Of the frames that the clip would read one after another: from the first to before this."""
    sources: Sequence[Mapping[str, str]] = ()
    """For ``steady``: ``uri`` and ``digest`` of the people of every piece, in order."""
    align: str = ""
    """For ``people``: ``auto`` (where they differ) or ``always``."""
    leader: Mapping[str, str] = field(default_factory=dict)
    """For ``people``: ``uri`` and ``digest`` of those of the first frame."""
    portrait: Mapping[str, str] = field(default_factory=dict)
    """The same of those in the portrait."""

    @functools.cached_property
    def key(self) -> str:
        """64 hex digits that follow from what decides the pixels; not from the place."""
        decides = {**dataclasses.asdict(self), "format": FORMAT_VERSION}
        for place in (decides, decides["leader"], decides["portrait"], *decides["sources"]):
            place.pop("uri", None)
        return hashlib.sha256(canonical_json(decides).encode()).hexdigest()

    def path(self, suffix: str) -> str:
        """Path below the output URL of what belongs to the unit."""
        return f"control/{self.key[:2]}/{self.key}{suffix}"

    def to_json(self) -> str:
        """For a stage's row."""
        return canonical_json(dataclasses.asdict(self))


def unit_from_json(text: str) -> MapUnit:
    """Read what :meth:`MapUnit.to_json` wrote."""
    values = json.loads(text)
    return MapUnit(**{**values, "sources": tuple(values["sources"])})


@dataclass(frozen=True, kw_only=True)
class RowUnits:
    """What has to be made for one control name of a row."""

    pieces: Sequence[MapUnit]
    """One after another; none for a row that brings its maps."""
    steady: str = ""
    """How one person is followed through them, as JSON; empty: every frame stands for itself."""
    steadied: MapUnit | None = None
    """Where that is done; planned when the people of all pieces have been found."""
    redrawn: Sequence[MapUnit] = ()
    """The pieces again, of the people as they are then."""
    picture: MapUnit | None
    """The condition image's map."""
    in_front: bool = False
    """Whether that map is frame 0; else only the people in it are wanted."""
    align: str | None = None
    aligned: Sequence[MapUnit] = ()
    """Pieces whose people are moved; planned when these have been found."""

    @property
    def all(self) -> list[MapUnit]:
        """What can be made at once."""
        return [*self.pieces, *([] if self.picture is None else [self.picture])]

    @property
    def drawn(self) -> Sequence[MapUnit]:
        """The pieces that count, before people are moved."""
        return self.redrawn or self.pieces

    @property
    def planned(self) -> list[MapUnit]:
        """All that is known so far to have to be made."""
        steadied = [] if self.steadied is None else [self.steadied]
        return [*self.all, *steadied, *self.redrawn, *self.aligned]

    def with_steadied(self, records: Records, out_uri: str) -> RowUnits:
        """Plan to follow one person, if that is wanted; arguments as :meth:`with_aligned`."""
        if not self.steady or not self.pieces:
            return self
        places = [_place(records[piece.key]["people"], out_uri) for piece in self.pieces]
        first = self.pieces[0]
        steadied = dataclasses.replace(
            first,
            **places[0],
            column=STEADY,
            detector={**first.detector, STEADY: self.steady},
            stop=self.pieces[-1].stop,
            sources=tuple(places),
        )
        return dataclasses.replace(self, steadied=steadied)

    def with_redrawn(self, records: Records, out_uri: str) -> RowUnits:
        """Plan to draw the people as they were followed; arguments as :meth:`with_aligned`."""
        if self.steadied is None:
            return self
        place = _place(records[self.steadied.key]["people"], out_uri)
        redrawn = [
            dataclasses.replace(piece, **place, column=KEYPOINTS, sample_rate=None)
            for piece in self.pieces
        ]
        return dataclasses.replace(self, redrawn=redrawn)

    def with_aligned(self, records: Records, out_uri: str) -> RowUnits:
        """Plan the moving of people, where there is any.

        Args:
            records: Of everything in :attr:`planned`.
            out_uri: Records name paths below it.

        Returns:
            The same with :attr:`aligned`.
        """
        if self.align is None or self.picture is None or not self.pieces:
            return self

        def people(unit: MapUnit) -> dict[str, str]:
            return _place(records[unit.key]["people"], out_uri)

        aligned = [
            dataclasses.replace(
                piece,
                **people(piece),
                column=PEOPLE,
                align=self.align,
                leader=people(self.drawn[0]),
                portrait=people(self.picture),
            )
            for piece in self.drawn
        ]
        return dataclasses.replace(self, aligned=aligned)


def _place(stored: Mapping[str, Any], out_uri: str) -> dict[str, str]:
    return {"uri": f"{out_uri}/{stored['path']}", "digest": stored["digest"]}


def units_of(
    request: ClipRequest,
    digests: Mapping[str, str],
    num_picked: int,
    detectors: Descriptions,
) -> dict[str, RowUnits]:
    """Plan the maps of a row.

    Args:
        request: Resolved, its length known.
        digests: Of its media, by column.
        num_picked: Frames that its video or its keypoints would give a clip without end.
        detectors: Descriptions of at least the row's control names.

    Returns:
        Control name to its units; empty for a row that needs none.
    """
    if not request.needs_maps:
        return {}
    needed = request.num_frames - int(request.condition_has_own_map)
    found = {}
    for name in request.control:
        common = {
            "control": name,
            "detector": {k: v for k, v in detectors[name].items() if k != STEADY},
            "width": request.width,
            "height": request.height,
            "upstream_fit": request.sampling.image_fit == "upstream",
        }
        pieces, picture = [], None
        align = request.align if CONTROLS[name].parts else None
        if column := request.maps_made_of:
            pieces = [
                MapUnit(
                    **common,
                    column=column,
                    uri=request.media[column],
                    digest=digests[column],
                    fps=float(request.fps),
                    sample_rate=request.sample_rate,
                    may_be_cut=request.video_may_be_cut,
                    first=number * PIECE_FRAMES,
                    stop=min((number + 1) * PIECE_FRAMES, num_picked),
                )
                for number in range(math.ceil(needed / PIECE_FRAMES))
            ]
        if request.condition_has_own_map or align is not None:
            uri = request.media[PICTURE]
            picture = MapUnit(**common, column=PICTURE, uri=uri, digest=digests[PICTURE])
        found[name] = RowUnits(
            pieces=pieces,
            steady=detectors[name].get(STEADY, ""),
            picture=picture,
            in_front=request.condition_has_own_map,
            align=align,
        )
    return found


def maps_to_json(units: Mapping[str, RowUnits], records: Records, out_uri: str) -> str:
    """Write where a row's maps lie, for its column ``control_maps``.

    Args:
        units: Of the row.
        records: Key to record of at least these units.
        out_uri: Records name paths below it.

    Returns:
        JSON: control name to ``pieces``, ``front`` (each ``uri`` and ``digest``) and
        ``piece_frames``.
    """

    def place(unit: MapUnit, moved: MapUnit | None = None) -> dict[str, str]:
        found = records[unit.key]["map"]
        if moved is not None:
            found = records[moved.key]["map"] or found  # nothing had to be moved
        return _place(found, out_uri)

    return canonical_json(
        {
            name: {
                "piece_frames": PIECE_FRAMES,
                "pieces": [place(*pair) for pair in zip_longest(row.drawn, row.aligned)],
                "front": place(row.picture) if row.picture and row.in_front else None,
            }
            for name, row in units.items()
        }
    )
