"""One fetch a machine and run, never stale bytes, and errors a person can act on."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from musev.errors import MediaError
from pipelines import media_cache
from pipelines.media_cache import MediaCache


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths really read from ``memory://`` storage, in order."""
    seen: list[str] = []
    real = MemoryFileSystem.cat_file

    def counted(self: MemoryFileSystem, path: str, *args: object, **kwargs: object) -> bytes:
        seen.append(path)
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return seen


def put(name: str, content: bytes) -> str:
    uri = f"memory://media-cache-test/{name}"
    with fsspec.open(uri, "wb") as file:
        file.write(content)
    return uri


def cache_in(folder: Path, run_id: str = "run-1", **options: int) -> MediaCache:
    return MediaCache(run_id=run_id, folder=str(folder), **options)


def test_many_rows_and_processes_fetch_a_picture_once(tmp_path: Path, downloads: list[str]) -> None:
    uri = put("face.png", b"portrait")
    with ThreadPoolExecutor(8) as pool:  # flock works between open files, so threads will do
        found = list(pool.map(lambda _: cache_in(tmp_path).fetch(uri), range(40)))
    assert len(downloads) == 1
    assert set(found) == {("sha256:" + hashlib.sha256(b"portrait").hexdigest(), b"portrait")}


def test_a_new_run_looks_again_and_sees_a_changed_file(tmp_path: Path) -> None:
    uri = put("changing.png", b"old")
    cache_in(tmp_path).fetch(uri)
    put("changing.png", b"new")
    assert cache_in(tmp_path).fetch(uri)[1] == b"old"  # one run sees one content
    assert cache_in(tmp_path, "run-2").fetch(uri)[1] == b"new"


def test_a_file_that_changed_after_the_check_is_an_error_not_another_picture(
    tmp_path: Path,
) -> None:
    uri = put("swapped.png", b"checked")
    digest, _ = cache_in(tmp_path / "a").fetch(uri)
    put("swapped.png", b"other")
    with pytest.raises(MediaError, match="changed while the job was running"):
        cache_in(tmp_path / "another-machine").read(uri, digest)


def test_the_folder_stays_below_its_limit_and_drops_the_least_recently_used(
    tmp_path: Path, downloads: list[str]
) -> None:
    cache = cache_in(tmp_path, limit_bytes=250)
    uris = [put(f"{index}.png", bytes([index]) * 100) for index in range(4)]
    digests = []
    for index, uri in enumerate(uris):
        digests.append(cache.fetch(uri)[0])
        for path in (tmp_path / "files").glob("*/*"):  # mtimes a second apart, without waiting
            os.utime(path, (path.stat().st_atime - 1, path.stat().st_mtime - 1))
        assert sum(p.stat().st_size for p in (tmp_path / "files").glob("*/*")) <= 250, index
    downloads.clear()
    assert cache.read(uris[3], digests[3]) == bytes([3]) * 100
    assert downloads == []
    assert cache.read(uris[0], digests[0]) == bytes([0]) * 100  # evicted: fetched again
    assert len(downloads) == 1


def test_unreadable_places_name_the_place_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_in(tmp_path / "cache")
    with pytest.raises(MediaError, match=r"no file at .*missing\.png.*manifest's folder"):
        cache.fetch(str(tmp_path / "missing.png"))
    with pytest.raises(MediaError, match="is a folder"):
        cache.fetch(str(tmp_path))
    both = r"could not be fetched.*run the same command again.*leaves the row.*--retry-failed"
    with pytest.raises(MediaError, match=both):
        cache.fetch("nosuchprotocol://bucket/face.png")
    monkeypatch.setattr(media_cache, "MAX_FILE_BYTES", 10)
    with pytest.raises(MediaError, match="smaller file"):
        cache.fetch(put("huge.png", b"x" * 11))


def test_notes_of_runs_long_past_are_forgotten(tmp_path: Path) -> None:
    uri = put("old.png", b"x")
    cache_in(tmp_path, "long-ago").fetch(uri)
    cache_in(tmp_path, "yesterday").fetch(uri)
    os.utime(tmp_path / "uris" / "long-ago", (0, 0))
    cache_in(tmp_path, "today").fetch(uri)
    assert {path.name for path in (tmp_path / "uris").iterdir()} == {"yesterday", "today"}


def test_a_file_on_disk_is_fetched_once_and_outlives_its_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = MemoryFileSystem.open

    def counted(self: MemoryFileSystem, path: str, *args: object, **kwargs: object) -> object:
        opened.append(path)
        return real(self, path, *args, **kwargs)

    uri = put("dance.mp4", b"film" * 100)
    monkeypatch.setattr(MemoryFileSystem, "open", counted)
    cache = cache_in(tmp_path, limit_bytes=500)
    with cache.open_file(uri) as (digest, path):
        assert path.name == "dance.mp4"
        assert digest == "sha256:" + hashlib.sha256(b"film" * 100).hexdigest()
        with cache.open_file(uri, digest) as (again, second):
            assert (again, second.read_bytes()) == (digest, b"film" * 100)
        assert not second.exists()
        assert len(opened) == 1
        cache.fetch(put("large.png", b"x" * 400))  # the film has to go
        assert not any(p.stat().st_size == 400 and p.read_bytes()[:4] == b"film"
                       for p in (tmp_path / "files").glob("*/*"))  # fmt: skip
        assert path.read_bytes() == b"film" * 100
    with cache.open_file(uri, digest) as (_, path):
        assert path.read_bytes() == b"film" * 100
    assert len([name for name in opened if name.endswith("dance.mp4")]) == 2
    assert list((tmp_path / "in_use").iterdir()) == []


def test_a_film_that_changed_after_the_check_is_an_error(tmp_path: Path) -> None:
    uri = put("swapped.mp4", b"checked")
    with cache_in(tmp_path / "a").open_file(uri) as (digest, _):
        pass
    put("swapped.mp4", b"other")
    elsewhere = cache_in(tmp_path / "another-machine")
    with pytest.raises(MediaError, match="changed while"), elsewhere.open_file(uri, digest):
        pass
    with pytest.raises(MediaError, match="no file at"), elsewhere.open_file(uri + "x"):
        pass


def test_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "in_use" / f"{2**22 + 1}-abc"  # above the largest process number
    mine = tmp_path / "in_use" / f"{os.getpid()}-abc"
    for folder in (left, mine):
        folder.mkdir(parents=True)
    with cache_in(tmp_path).open_file(put("a.mp4", b"x")):
        assert not left.exists()
        assert mine.exists()
