"""The demo's manifest, and where its pictures come from; the run itself is `make demo`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from jobs.demo import (
    _CAST,
    _CAST_SEED,
    PROFILE,
    Actor,
    build_requests,
    draw_cast,
    find_portraits,
)
from musev.media import fit_image, read_image, read_video
from musev.registry import get_profile
from musev.settings import replace_setting
from musev.synthetic.clips import draw_clip
from pipelines.manifest import read_manifest, resolve_rows, write_manifest
from pipelines.media_cache import MediaCache
from pipelines.rows import request_from_json, request_to_json
from pipelines.stages.load_inputs import load_inputs
from pipelines.text_to_pose import plan_poses, read_pose_settings


def test_without_a_folder_of_portraits_people_are_drawn(tmp_path: Path) -> None:
    paths = find_portraits(tmp_path / "nowhere", drawn_into=tmp_path / "drawn")
    pictures = [read_image(path) for path in paths]
    assert len(pictures) >= 2
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    again = find_portraits(tmp_path / "nowhere", drawn_into=tmp_path / "drawn")
    assert again == paths


def test_given_portraits_are_used_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").touch()
    (tmp_path / "a.jpg").touch()
    found = find_portraits(tmp_path, drawn_into=tmp_path / "drawn")
    assert [Path(path).name for path in found] == ["a.jpg", "b.jpg"]
    assert not (tmp_path / "drawn").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def cast(folder: Path) -> dict[str, Actor]:
    return draw_cast(folder, get_profile(PROFILE))


def test_every_request_of_the_demo_is_valid_and_different(
    folder: Path, cast: dict[str, Actor]
) -> None:
    """All media are there and long enough: the input stage finds nothing to complain about."""
    portrait = find_portraits(folder / "nowhere", drawn_into=folder / "portraits")[0]
    manifest = str(folder / "manifest.parquet")
    write_manifest(build_requests(cast, portrait), manifest)
    raw = read_manifest(manifest)
    profile = replace_setting(get_profile(PROFILE), "weights.random_seed", "0")
    requests, refused = resolve_rows(raw.rows, profile, raw.base_uri)
    assert refused == []
    assert len(requests) >= 8
    cache = MediaCache(run_id="demo", folder=str(folder / "cache"))
    names = [f"sample-{number}" for number in range(len(requests))]
    rows = [
        load_inputs(
            {"row": number, "request": request_to_json(request)},
            cache=cache,
            name_sample=lambda *_: names.pop(),
        )
        for number, request in enumerate(requests)
    ]
    assert [row["error_message"] for row in rows] == [""] * len(rows)
    checked = [request_from_json(row["request"]) for row in rows]
    kinds = {
        "text alone": lambda r: not r.media,
        "picture alone": lambda r: set(r.media) == {"condition_image"},
        "reference alone": lambda r: set(r.media) == {"reference_image", "ip_adapter_image"},
        "picture and poses": lambda r: set(r.media) == {"condition_image", "video"},
        "poses alone": lambda r: set(r.media) == {"video"},
        "long": lambda r: r.num_frames == 120,
    }
    for kind, holds in kinds.items():
        assert any(map(holds, checked)), kind
    assert sum(request.num_frames for request in checked) < 260  # three minutes on two cores


def test_rows_of_words_alone_are_given_poses(folder: Path, cast: dict[str, Actor]) -> None:
    rows = build_requests(cast, "portrait.png")
    requests, _ = resolve_rows(rows, get_profile(PROFILE), str(folder))
    posed = set(plan_poses(rows, requests, read_pose_settings()).tasks)
    assert posed == {"01-text", "02-text-in-a-room", "05-same-person-elsewhere"}


def test_the_skeletons_survive_the_video(folder: Path, cast: dict[str, Actor]) -> None:
    """Thin coloured lines: yuv420p at the clip's own size would wash them out."""
    clip = draw_clip(_CAST_SEED, _CAST["kicking"], held_out=True, num_frames=3)
    frames = islice(read_video(folder / cast["kicking"].poses), 3)
    for drawn, enlarged in zip(clip.control_TYXC, frames, strict=True):
        found = fit_image(enlarged, width=128, height=128).astype(int)
        assert np.abs(found - drawn)[drawn.max(axis=-1) > 0].mean() < 10
        assert np.abs(found - drawn)[drawn.max(axis=-1) == 0].mean() < 1
