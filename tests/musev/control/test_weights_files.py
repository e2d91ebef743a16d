"""Detectors' files are found, fetched once, digested; what is missing is named with its remedy."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from musev.config import ControlConfig
from musev.control.weights_files import digest_file, fetch_files, find_files
from musev.errors import WeightsError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MUSEV_WEIGHTS_CACHE", str(folder))
    return folder


@pytest.fixture
def remote() -> Iterator[str]:
    """URL of a place that no other test has used: what a URL held is remembered."""
    files = fsspec.filesystem("memory")
    root = f"/detectors-{uuid.uuid4().hex}"
    files.pipe_file(f"{root}/one/a.pth", b"first")
    yield f"memory:/{root}"
    files.rm(root, recursive=True)


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


def test_a_remote_file_is_copied_to_this_machine(remote, cache: Path) -> None:
    first = fetch_files(f"{remote}/one", ["a.pth"])["a.pth"]
    assert first.name == "a.pth"
    assert first.read_bytes() == b"first"
    assert cache in first.parents
    first.write_bytes(b"kept!")  # the copy is used, not fetched again
    assert fetch_files(f"{remote}/one", ["a.pth"])["a.pth"].read_bytes() == b"kept!"


def test_a_remote_file_that_is_not_there_is_named_with_what_it_is_for(remote) -> None:
    config = ControlConfig(weights={"hed": f"{remote}/two"})
    with pytest.raises(WeightsError) as caught:
        find_files("hed", config)
    assert f"{remote}/two/ControlNetHED.pth does not exist" in str(caught.value)
    assert "control 'hed' needs" in str(caught.value)


def test_a_place_that_cannot_be_reached_is_an_error_in_words() -> None:
    with pytest.raises(WeightsError, match=r"nosuch://bucket/ControlNetHED\.pth .* fetched"):
        find_files("hed", ControlConfig(weights={"annotators": "nosuch://bucket"}))


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
