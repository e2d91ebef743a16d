"""The demo's manifest, and where its pictures come from; the run itself is `make demo`."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.demo import build_requests, find_portraits
from musev.media import read_image
from musev.registry import get_profile
from pipelines.manifest import read_manifest, resolve_rows, write_manifest


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


@pytest.mark.parametrize("num_portraits", [1, 4, 7])
def test_every_request_of_the_demo_is_valid_and_different(
    tmp_path: Path, num_portraits: int
) -> None:
    manifest = str(tmp_path / "manifest.parquet")
    write_manifest(build_requests([f"/face-{n}.png" for n in range(num_portraits)]), manifest)
    raw = read_manifest(manifest)
    requests, refused = resolve_rows(raw.rows, get_profile("mini"), raw.base_uri)
    assert refused == []
    assert len(requests) >= 8
    assert len({(r.prompt, r.seed) for r in requests}) == len(requests)
    assert max(r.num_frames for r in requests) == 48
    for column in ("condition_image", "reference_image", "ip_adapter_image"):
        assert any(column in r.media for r in requests)
