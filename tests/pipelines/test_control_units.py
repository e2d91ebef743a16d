"""Units of maps: shared where pixels are the same, apart where anything differs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from musev.config import ClipRequest, SamplingConfig
from pipelines.control_units import (
    PIECE_FRAMES,
    digests_of,
    maps_to_json,
    unit_from_json,
    units_of,
)
from tests.pipelines.stand_ins import request

DIGESTS = {"video": "sha256:v", "condition_image": "sha256:c"}
DETECTORS = {name: {"control": name, "version": "1"} for name in ("canny", "pose")}


def following(**columns: Any) -> ClipRequest:
    values = {"video": "file:///a.mp4", "control": ("canny",), "num_frames": 5, **columns}
    return request("r", **values)


def keys(clip: ClipRequest, num_picked: int = 500) -> list[str]:
    found = units_of(clip, DIGESTS, num_picked, DETECTORS)
    return [unit.key for row in found.values() for unit in row.all]


def test_rows_share_pieces_however_long_they_are() -> None:
    short, long = keys(following()), keys(following(num_frames=2 * PIECE_FRAMES + 1))
    assert (len(short), len(long)) == (1, 3)
    assert short == long[:1]
    moved = following(video="s3://other/place.mp4", seed=9)
    assert keys(dataclasses.replace(moved, request_id="other")) == short


def test_pieces_cover_the_video_and_end_with_it() -> None:
    (row,) = units_of(following(num_frames=200), DIGESTS, 210, DETECTORS).values()
    assert [(unit.first, unit.stop) for unit in row.pieces] == [(0, 96), (96, 192), (192, 210)]
    assert row.picture is None


@pytest.mark.parametrize(
    "change",
    [
        {"width": 64},
        {"fps": 8.0},
        {"sample_rate": 2},
        {"video_may_be_cut": True},
        {"control": ("pose",)},
        {"sampling": SamplingConfig(num_steps=1, image_fit="upstream")},
    ],
)
def test_whatever_decides_pixels_names_another_unit(change: dict[str, Any]) -> None:
    assert keys(following(**change)) != keys(following())


def test_the_detectors_description_names_the_unit() -> None:
    other = {"canny": {"control": "canny", "version": "2"}}
    (row,) = units_of(following(), DIGESTS, 500, other).values()
    assert row.pieces[0].key != keys(following())[0]


def test_a_condition_image_with_its_own_map_takes_a_frame_less_of_the_video() -> None:
    own = {"condition_image": "file:///c.png", "condition_has_own_map": True}
    (row,) = units_of(following(num_frames=97, **own), DIGESTS, 500, DETECTORS).values()
    assert len(row.pieces) == 1
    assert row.picture is not None
    assert row.in_front
    assert (row.picture.column, row.picture.uri) == ("condition_image", "file:///c.png")
    given = following(video_is_control=True, control=("pose",), **own)
    (row,) = units_of(given, DIGESTS, 500, DETECTORS).values()
    assert not row.pieces
    assert row.picture is not None


def test_rows_that_bring_their_maps_need_none() -> None:
    assert units_of(following(video_is_control=True), DIGESTS, 500, {}) == {}
    assert units_of(request("r"), {}, 0, {}) == {}


def test_a_unit_and_the_places_of_maps_survive_json() -> None:
    units = units_of(following(num_frames=100), DIGESTS, 500, DETECTORS)
    for unit in units["canny"].all:
        assert unit_from_json(unit.to_json()) == unit
        assert unit_from_json(unit.to_json()).key == unit.key
    records = {
        unit.key: {"map": {"path": unit.path(".mkv"), "digest": f"sha256:{unit.first}"}}
        for unit in units["canny"].all
    }
    places = json.loads(maps_to_json(units, records, "s3://b/out"))
    assert list(places) == ["canny"]
    first = units["canny"].pieces[0]
    assert (
        places["canny"]["pieces"][0]["uri"] == f"s3://b/out/control/{first.key[:2]}/{first.key}.mkv"
    )
    assert [piece["digest"] for piece in places["canny"]["pieces"]] == ["sha256:0", "sha256:96"]
    assert places["canny"]["front"] is None


def test_digests_are_of_the_networks_that_read_the_maps() -> None:
    digests = {"unet": "u", "controlnets/openpose": "o", "controlnets/canny": "c"}
    assert digests_of(digests, following()) == {"unet": "u", "controlnets/canny": "c"}
    poses = dataclasses.replace(following(), control=("dwpose_body_hand",), control_scale=())
    assert digests_of(digests, poses) == {"unet": "u", "controlnets/openpose": "o"}


def test_people_are_moved_by_units_of_their_own_once_they_are_found() -> None:
    face = {"condition_image": "file:///c.png", "align": "auto"}
    clip = following(num_frames=100, control=("pose",), **face)
    (row,) = units_of(clip, DIGESTS, 500, DETECTORS).values()
    assert (len(row.pieces), row.in_front, row.align) == (2, False, "auto")
    assert len(row.all) == 3
    records = {
        unit.key: {
            "map": {"path": f"{n}.mkv", "digest": f"sha256:m{n}"},
            "people": {"path": f"{n}.parquet", "digest": f"sha256:p{n}"},
        }
        for n, unit in enumerate(row.all)
    }
    moved = row.with_aligned(records, "s3://b/out")
    assert [unit.uri for unit in moved.aligned] == ["s3://b/out/0.parquet", "s3://b/out/1.parquet"]
    assert {unit.leader["digest"] for unit in moved.aligned} == {"sha256:p0"}
    assert {unit.portrait["digest"] for unit in moved.aligned} == {"sha256:p2"}
    elsewhere = row.with_aligned(records, "file:///moved")
    assert [unit.key for unit in elsewhere.aligned] == [unit.key for unit in moved.aligned]
    # The second piece had to be moved, the first not.
    records[moved.aligned[0].key] = {"map": None, "people": None}
    records[moved.aligned[1].key] = {"map": {"path": "x.mkv", "digest": "d"}, "people": None}
    places = json.loads(maps_to_json({"pose": moved}, records, "s3://b/out"))["pose"]
    assert [piece["uri"] for piece in places["pieces"]] == ["s3://b/out/0.mkv", "s3://b/out/x.mkv"]
    assert places["front"] is None


def test_one_person_is_followed_before_anybody_is_moved() -> None:
    face = {"condition_image": "file:///c.png", "align": "auto"}
    clip = following(num_frames=100, control=("pose",), **face)
    steady = {"pose": {**DETECTORS["pose"], "steady": '{"smoothing":0.5}'}}
    (plain,) = units_of(clip, DIGESTS, 500, DETECTORS).values()
    (row,) = units_of(clip, DIGESTS, 500, steady).values()
    assert [unit.key for unit in row.all] == [unit.key for unit in plain.all], "found once for both"
    records: dict[str, Any] = {}

    def made() -> None:
        for unit in row.planned:
            n = len(records)
            records.setdefault(
                unit.key,
                {
                    "map": {"path": f"{n}.mkv", "digest": f"sha256:m{n}"},
                    "people": {"path": f"{n}.parquet", "digest": f"sha256:p{n}"},
                },
            )

    made()
    row = row.with_steadied(records, "s3://b/out")
    assert row.steadied is not None
    assert [place["digest"] for place in row.steadied.sources] == ["sha256:p0", "sha256:p1"]
    assert (row.steadied.first, row.steadied.stop) == (0, row.pieces[-1].stop)
    made()
    row = row.with_redrawn(records, "s3://b/out")
    assert [unit.uri for unit in row.redrawn] == ["s3://b/out/3.parquet"] * 2
    assert [(unit.first, unit.stop) for unit in row.redrawn] == [
        (unit.first, unit.stop) for unit in row.pieces
    ]
    made()
    row = row.with_aligned(records, "s3://b/out")
    assert [unit.uri for unit in row.aligned] == ["s3://b/out/4.parquet", "s3://b/out/5.parquet"]
    made()
    places = json.loads(maps_to_json({"pose": row}, records, "s3://b/out"))["pose"]
    assert [piece["uri"] for piece in places["pieces"]] == ["s3://b/out/6.mkv", "s3://b/out/7.mkv"]
    assert plain.with_steadied(records, "s3://b/out") == plain
