"""A row's media as they were when it was checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musev.errors import MediaError
from musev.lora_choice import parse_lora
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


def test_control_maps_are_fetched_when_they_are_asked_for(tmp_path: Path) -> None:
    wired = graph(tmp_path)
    clip = request(
        "r", video=film(tmp_path / "dance.mp4"), control=("canny",), condition_has_own_map=True
    )
    places = {}
    for name in ("one", "two", "face"):
        uri = film(tmp_path / f"{name}.mkv") if name != "face" else picture(tmp_path / "face.png")
        places[name] = {"uri": uri, "digest": wired.cache.fetch(uri)[0]}
    maps_json = json.dumps(
        {
            "canny": {
                "piece_frames": 6,
                "pieces": [places["one"], places["two"]],
                "front": places["face"],
            }
        }
    )
    digests = json.dumps({"video": wired.cache.fetch(clip.media["video"])[0]})
    in_use = tmp_path / "cache" / "in_use"
    with open_media(wired.cache, clip, digests, maps_json) as media:
        assert "video" not in media  # the maps stand for it
        maps = media["maps"]
        assert not list(in_use.glob("*/*"))
        assert maps.open_piece("canny", 1).read_bytes() == (tmp_path / "two.mkv").read_bytes()
        assert [path.name for path in in_use.glob("*/*")] == ["two.mkv"]
        assert (maps.front["canny"] == 100).all()
    assert not list(in_use.iterdir())


def test_a_control_video_may_have_the_condition_images_map_in_front(tmp_path: Path) -> None:
    wired = graph(tmp_path)
    clip = request("r", video=film(tmp_path / "a.mp4"), video_is_control=True, control=("canny",))
    digests = json.dumps({"video": wired.cache.fetch(clip.media["video"])[0]})
    face = picture(tmp_path / "face.png")
    front = {"uri": face, "digest": wired.cache.fetch(face)[0]}
    maps_json = json.dumps({"canny": {"piece_frames": 96, "pieces": [], "front": front}})
    with open_media(wired.cache, clip, digests, maps_json) as media:
        assert media["maps"].video == media["video"]
        assert media["maps"].open_piece is None
        assert list(media["maps"].front) == ["canny"]


def test_lora_files_stay_as_long_as_the_body(tmp_path: Path) -> None:
    wired = graph(tmp_path)
    (tmp_path / "style.safetensors").write_bytes(b"factors")
    choice = parse_lora(f"{(tmp_path / 'style.safetensors').as_uri()}:0.5")
    clip = request("r", loras=(choice,))
    with wired.cache.open_file(choice.file) as (digest, _):
        digests = json.dumps({"loras.0": digest})
    with open_media(wired.cache, clip, digests) as media:
        (file,) = media["loras"]
        assert (file.choice, file.digest) == (choice, digest)
        assert file.path.read_bytes() == b"factors"
    assert not file.path.exists()
