"""Weights from object storage: fetched once, whole or not at all, checked, and told when wrong."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.config import conf

from musev.config import WeightsConfig
from musev.errors import WeightsError
from musev.models.bundle import load_bundle, save_bundle
from musev.models.tiny import make_tiny_bundle
from musev.weight_parts import digest_weights
from musev.weight_store import RECORD, _fetched, default_folder, is_remote, local_part
from musev.weights import local_path
from tests.musev.models.published_layout import write_published
from tests.s3_server import S3Server, s3_server, s3_uri

__all__ = ["s3_server", "s3_uri"]


def every(names: list[str]) -> list[str]:
    return names


@pytest.fixture
def bucket(
    s3_server: S3Server, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A bucket that fsspec finds without being told, and a cache folder of the test's own."""
    monkeypatch.setitem(conf, "s3", s3_server.storage_options)
    monkeypatch.setenv("MUSEV_WEIGHTS_CACHE", str(tmp_path / "cache"))
    _fetched.cache_clear()
    yield s3_uri
    _fetched.cache_clear()


def put(url: str, content: bytes) -> None:
    fs, path = fsspec.url_to_fs(url)
    fs.pipe_file(path, content)


def test_paths_are_returned_as_they_are(tmp_path: Path) -> None:
    assert local_part("a/b", "unet", choose=every) == Path("a/b/unet")
    assert local_part(f"file://{tmp_path}", choose=every) == tmp_path
    assert is_remote("hf://owner/name")
    assert not is_remote("checkpoints/vae")
    assert str(default_folder()).endswith("weights") or "MUSEV_WEIGHTS_CACHE" in os.environ


def test_a_folder_is_fetched_once_and_only_what_is_needed(bucket: str, s3_server: S3Server) -> None:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "flax.msgpack"):
        put(f"{bucket}/base/unet/{name}", name.encode())
    put(f"{bucket}/base/unet/deeper/more.json", b"{}")
    folder = local_path(f"{bucket}/base", "unet")
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", RECORD}
    record = json.loads((folder / RECORD).read_text())
    assert record["url"] == f"{bucket}/base/unet"
    assert record["sha256"]["config.json"] == hashlib.sha256(b"config.json").hexdigest()

    s3_server.requests.clear()
    _fetched.cache_clear()  # as in another process of this machine
    assert local_path(f"{bucket}/base", "unet") == folder
    fetched = [path for method, path in s3_server.requests if method == "GET" and "." in path]
    assert [path for path in fetched if "safetensors" in path] == []
    assert local_path(f"{bucket}/base", "unet") == folder

    put(f"{bucket}/base/unet/config.json", b"changed!")
    _fetched.cache_clear()
    assert (local_path(f"{bucket}/base", "unet") / "config.json").read_bytes() == b"changed!"


def test_a_single_file_keeps_its_name(bucket: str) -> None:
    put(f"{bucket}/loras/style.safetensors", b"weights")
    path = local_path(f"{bucket}/loras/style.safetensors")
    assert (path.name, path.read_bytes()) == ("style.safetensors", b"weights")


def test_what_the_source_says_of_its_files_is_checked(bucket: str, tmp_path: Path) -> None:
    right, wrong = hashlib.sha256(b"weights").hexdigest(), "0" * 64
    for name, told in (("good", right), ("bad", wrong)):
        put(f"{bucket}/{name}/model.safetensors", b"weights")
        put(f"{bucket}/{name}/SHA256SUMS", f"{told}  model.safetensors\n".encode())
    assert (local_path(f"{bucket}/good") / "model.safetensors").is_file()
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged.*SHA256SUMS says 0000"):
        local_path(f"{bucket}/bad")
    left = [path for path in (tmp_path / "cache").rglob("model.safetensors")]
    assert len(left) == 1  # of what failed, nothing


def test_missing_weights_and_missing_drivers_are_told(bucket: str) -> None:
    with pytest.raises(WeightsError, match="nowhere does not exist"):
        local_path(f"{bucket}/nowhere")
    with pytest.raises(WeightsError, match=r"no driver|cannot be fetched"):
        local_path("nosuchscheme://bucket/unet")


def test_an_unreachable_source_gives_the_copy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(f"{bucket}/vae/config.json", b"{}")
    folder = local_path(f"{bucket}/vae")
    _fetched.cache_clear()

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("musev.weight_store._look_up", refuse)
    assert local_path(f"{bucket}/vae") == folder
    with pytest.raises(WeightsError, match="no route"):
        local_path(f"{bucket}/other")


def upload(folder: Path, url: str) -> None:
    fs, path = fsspec.url_to_fs(url)
    for file in folder.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{path}/{file.relative_to(folder)}", file.read_bytes())


def test_published_parts_and_bundles_load_from_urls(bucket: str, tmp_path: Path) -> None:
    bundle = make_tiny_bundle(5)
    local = write_published(bundle, tmp_path / "published")
    upload(tmp_path / "published", f"{bucket}/p")

    def remote(path: str | None) -> str | None:
        return path and path.replace(str(tmp_path / "published"), f"{bucket}/p")

    config = WeightsConfig(
        t2i=remote(local.t2i),
        motion=remote(local.motion),
        referencenet=remote(local.referencenet),
        image_prompt=remote(local.image_prompt),
        image_encoder=remote(local.image_encoder),
        vae=remote(local.vae),
        controlnets={name: remote(path) or "" for name, path in local.controlnets.items()},
    )
    assert digest_weights(config) == digest_weights(local)
    expected, found = load_bundle(local).networks, load_bundle(config).networks
    assert found.keys() == expected.keys()

    save_bundle(bundle, tmp_path / "own")
    upload(tmp_path / "own", f"{bucket}/own")
    own = WeightsConfig(bundle=f"{bucket}/own")
    assert digest_weights(own) == digest_weights(WeightsConfig(bundle=str(tmp_path / "own")))
    assert load_bundle(own).networks.keys() == bundle.networks.keys()
