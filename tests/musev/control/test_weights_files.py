"""Detectors' files are found, fetched once, digested; what is missing is named with its remedy."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from musev.config import ControlConfig
from musev.control.weights_files import digest_file, fetch_files, find_files
from musev.errors import WeightsError

BUCKET = "memory://weights-of-detectors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MUSEV_WEIGHTS_CACHE", str(folder))
    return folder


@pytest.fixture
def remote():
    files = fsspec.filesystem("memory")
    files.pipe_file("/weights-of-detectors/a.pth", b"first")
    yield files
    files.rm("/weights-of-detectors", recursive=True)


def test_the_nearest_key_gives_the_place(tmp_path: Path) -> None:
    places = {}
    for key in ("hed_scribble", "hed", "annotators"):
        (tmp_path / key).mkdir()
        (tmp_path / key / "ControlNetHED.pth").write_bytes(key.encode())
        places[key] = str(tmp_path / key)
    for key in ("hed_scribble", "hed", "annotators"):
        found = find_files("hed_scribble", ControlConfig(weights=places))
        assert found["ControlNetHED.pth"].read_bytes() == key.encode()
        del places[key]


def test_names_without_weights_need_no_place() -> None:
    assert find_files("canny", ControlConfig()) == {}
    assert find_files("dwpose", ControlConfig()) == {}


def test_without_a_place_the_error_says_what_to_put_where() -> None:
    with pytest.raises(WeightsError) as caught:
        find_files("lineart", ControlConfig())
    for part in ("'lineart'", "sk_model.pth and sk_model2.pth", "lllyasviel/Annotators", "MIT"):
        assert part in str(caught.value)
    assert "--set control.weights.lineart=FOLDER" in str(caught.value)


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "sk_model.pth").write_bytes(b"x")
    config = ControlConfig(weights={"annotators": str(tmp_path)})
    with pytest.raises(WeightsError, match=f"{tmp_path} does not hold sk_model2.pth"):
        find_files("lineart", config)


def test_a_remote_file_is_fetched_once_and_again_when_it_changes(remote, cache: Path) -> None:
    first = fetch_files(BUCKET, ["a.pth"])["a.pth"]
    assert first.read_bytes() == b"first"
    assert cache in first.parents
    first.write_bytes(b"kept!")  # the copy is used, not fetched again
    assert fetch_files(BUCKET, ["a.pth"])["a.pth"].read_bytes() == b"kept!"
    remote.pipe_file("/weights-of-detectors/a.pth", b"other")
    assert fetch_files(BUCKET, ["a.pth"])["a.pth"].read_bytes() == b"other"
    assert not list(cache.rglob("*.part"))


def test_a_file_that_is_not_there_is_named(remote) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fetch_files(BUCKET, ["a.pth", "b.pth"])
    assert caught.value.args == ("b.pth",)


def test_an_incomplete_transfer_is_an_error_and_leaves_nothing(
    remote, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(remote)
    monkeypatch.setattr(
        kind, "get_file", lambda self, path, local, **_: Path(local).write_bytes(b"fi")
    )
    with pytest.raises(WeightsError, match="2 of 5 bytes arrived"):
        fetch_files(BUCKET, ["a.pth"])
    assert [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_a_place_that_cannot_be_reached_is_an_error_in_words() -> None:
    with pytest.raises(WeightsError, match="nosuch://bucket cannot be read"):
        fetch_files("nosuch://bucket", ["a.pth"])


def test_hub_urls_have_a_reader() -> None:
    from huggingface_hub import HfFileSystem

    assert fsspec.get_filesystem_class("hf") is HfFileSystem


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"same")
    other.write_bytes(b"same")
    assert digest_file(one) == digest_file(other)
    assert digest_file(one).startswith("sha256:0967115f2813a3541eaef77de9d9d577")
    os.utime(one, ns=(1, 1))
    one.write_bytes(b"else")
    assert digest_file(one) != digest_file(other)
