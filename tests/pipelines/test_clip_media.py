"""A row's media as they were when it was checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musev.errors import MediaError
from pipelines.clip_media import open_media
from tests.pipelines.stand_ins import film, graph, picture, request


def test_pictures_are_decoded_and_a_video_stays_a_file(tmp_path: Path) -> None:
    wired = graph(tmp_path)
    clip = request(
        "r",
        condition_image=picture(tmp_path / "face.png", colour=9),
        video=film(tmp_path / "a.mp4"),
        video_is_control=True,
        control=("openpose",),
    )
    digests = json.dumps({name: wired.cache.fetch(uri)[0] for name, uri in clip.media.items()})
    with open_media(wired.cache, clip, digests) as media:
        assert media["condition_image"].mean() == 9  # type: ignore[union-attr]
        video = media["video"]
        assert isinstance(video, Path)
        assert video.read_bytes() == (tmp_path / "a.mp4").read_bytes()
        assert list((tmp_path / "cache" / "in_use").iterdir())
    assert not list((tmp_path / "cache" / "in_use").iterdir())


def test_a_picture_that_changed_is_refused(tmp_path: Path) -> None:
    wired = graph(tmp_path)
    clip = request("r", condition_image=picture(tmp_path / "face.png"))
    digests = json.dumps({"condition_image": wired.cache.fetch(clip.media["condition_image"])[0]})
    picture(tmp_path / "face.png", colour=3)
    elsewhere = graph(tmp_path / "another-machine").cache
    with pytest.raises(MediaError, match="changed"), open_media(elsewhere, clip, digests):
        pass
