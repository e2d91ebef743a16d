"""A machine's folder of media files: the same portrait in a thousand rows is fetched once.

Files are kept by content digest. What a URI held is remembered per run only, so a file that changes
between two runs is seen. Any number of processes of a machine share one folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from musev.errors import MediaError

MAX_FILE_BYTES = 256 * 2**20
"""A single file above this is refused before it is fetched whole."""
MAX_VIDEO_BYTES = 16 * 2**30
"""The same for a file that is kept on disk and never whole in memory."""

_PIECE_BYTES = 1 << 20
_KEEP_NOTES_S = 30 * 86400.0  # longer than any run: what its URIs held


def default_folder() -> str:
    """Name this user's cache folder on this machine (``MUSEV_CACHE`` overrides it)."""
    fallback = Path(tempfile.gettempdir()) / f"musev-media-{os.getuid()}"
    return os.environ.get("MUSEV_CACHE", str(fallback))


@dataclass(frozen=True, kw_only=True)
class MediaCache:
    """Fetch media through fsspec, each URI once a run and machine.

    Args:
        run_id: What a URI held is remembered under this name.
        folder: Where files lie; empty for :func:`default_folder` of the machine it runs on.
        limit_bytes: Least recently used files go when the folder holds more.
        storage_options: Passed to fsspec.
    """

    run_id: str
    folder: str = ""
    limit_bytes: int = 2 * 2**30
    storage_options: dict[str, Any] = field(default_factory=dict)

    def fetch(self, uri: str) -> tuple[str, bytes]:
        """Read a file, from the folder if this run has met it on this machine.

        Args:
            uri: An absolute fsspec URI or path; one that cannot be read is a MediaError.

        Returns:
            Digest (``sha256:...``) and content.
        """
        with self._note_of(uri) as note:
            if note.exists():
                digest = note.read_text()
                with suppress(FileNotFoundError):
                    return digest, self._read(digest)
            content = self._download(uri)
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            self._store(digest, content)
            _write_whole(note, digest.encode())
        return digest, content

    @contextmanager
    def open_file(self, uri: str, digest: str = "") -> Iterator[tuple[str, Path]]:
        """Keep a file on this machine's disk while the body works with it; for videos.

        Args:
            uri: An absolute fsspec URI or path.
            digest: What it must hold; empty for whatever it holds.

        Yields:
            Its digest, and a path that exists until the body ends, whatever else is fetched.

        Raises:
            MediaError: If it cannot be read, or holds something else by now.
        """
        in_use = self._root / "in_use"
        _forget_dead_users(in_use)
        in_use.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=in_use, prefix=f"{os.getpid()}-"))
        link = folder / (posixpath.basename(uri)[-100:] or "file")
        try:
            if not digest or not self._link(digest, link):
                with self._note_of(uri) as note:
                    found = note.read_text() if note.exists() else ""
                    if not found or not self._link(found, link):
                        found = self._download_file(uri, link)
                        _write_whole(note, found.encode())
                if digest and found != digest:
                    raise MediaError(_changed(uri, digest, found))
                digest = found
            yield digest, link
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def read(self, uri: str, digest: str) -> bytes:
        """Read a file whose digest is known; fetch it again where this machine has no copy.

        Args:
            uri: Where it came from.
            digest: What it must hold.

        Returns:
            Its content.

        Raises:
            MediaError: If it holds something else by now.
        """
        with suppress(FileNotFoundError):
            return self._read(digest)
        found, content = self.fetch(uri)
        if found != digest:
            raise MediaError(_changed(uri, digest, found))
        return content

    @property
    def _root(self) -> Path:
        return Path(self.folder or default_folder())

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self._root / "files" / name[:2] / name

    def _read(self, digest: str) -> bytes:
        path = self._path(digest)
        content = path.read_bytes()
        with suppress(FileNotFoundError):
            os.utime(path)  # used just now
        return content

    @contextmanager
    def _note_of(self, uri: str) -> Iterator[Path]:
        """Where it is noted what a URI held in this run, locked."""
        notes = self._root / "uris" / self.run_id
        if not notes.exists():
            _forget_old_runs(notes.parent)
        note = notes / hashlib.sha256(uri.encode()).hexdigest()
        with _locked(note):
            yield note

    def _link(self, digest: str, link: Path) -> bool:
        path = self._path(digest)
        with suppress(FileNotFoundError):
            _link_or_copy(path, link)
            os.utime(path)  # used just now
            return True
        return False

    def _download(self, uri: str) -> bytes:
        with self._storage_file(uri, MAX_FILE_BYTES) as (filesystem, path, _):
            return filesystem.cat_file(path)

    def _download_file(self, uri: str, target: Path) -> str:
        """Copy a file into the folder in pieces, and to ``target`` as a hard link."""
        total = hashlib.sha256()
        with self._storage_file(uri, MAX_VIDEO_BYTES) as (filesystem, path, size):
            self._make_room(size or 0)
            with filesystem.open(path, "rb") as source, target.open("wb") as copy:
                while piece := source.read(_PIECE_BYTES):
                    total.update(piece)
                    copy.write(piece)
        digest = f"sha256:{total.hexdigest()}"
        kept = self._path(digest)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            _link_or_copy(target, kept)
        return digest

    @contextmanager
    def _storage_file(self, uri: str, limit: int) -> Iterator[tuple[Any, str, int | None]]:
        """Yield file system, path and size; every error becomes a MediaError."""
        try:
            filesystem, path = fsspec.core.url_to_fs(uri, **self.storage_options)
            size = filesystem.size(path)
            if size is not None and size > limit:
                raise MediaError(
                    f"{uri} has {size / 2**20:.0f} MiB; a file may have {limit / 2**20:.0f}. "
                    "Give a smaller file."
                )
            yield filesystem, path, size
        except MediaError:
            raise
        except FileNotFoundError:
            raise MediaError(
                f"no file at {uri}. Check the name; relative paths start at the manifest's folder."
            ) from None
        except IsADirectoryError:
            raise MediaError(f"{uri} is a folder, not a file. Name the file itself.") from None
        except PermissionError as error:
            raise MediaError(
                f"{uri} may not be read ({error}). Check access rights and credentials on the "
                "machines of the cluster."
            ) from error
        except Exception as error:  # every storage library raises its own
            raise MediaError(
                f"{uri} could not be fetched: {type(error).__name__}: {error}. If storage was out "
                "of reach for a while, run the same command again; if that leaves the row alone, "
                "its failure is on record: add --retry-failed."
            ) from error

    def _store(self, digest: str, content: bytes) -> None:
        path = self._path(digest)
        if not path.exists():
            self._make_room(len(content))
            _write_whole(path, content)

    def _make_room(self, needed: int) -> None:
        files = []
        for path in (self._root / "files").glob("*/*"):
            with suppress(FileNotFoundError):
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        excess = needed + sum(size for _, size, _ in files) - self.limit_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            with suppress(FileNotFoundError):
                path.unlink()
            excess -= size


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:  # not every file system has hard links
        shutil.copyfile(source, target)


def _changed(uri: str, before: str, now: str) -> str:
    return (
        f"{uri} changed while the job was running: it was {before} when the row was checked and is "
        f"{now} now. Run the job again to render the new content."
    )


def _forget_dead_users(in_use: Path) -> None:
    """Remove what killed processes of this machine left behind."""
    for folder in in_use.glob("*-*"):
        with suppress(ValueError, OSError):
            try:
                os.kill(int(folder.name.partition("-")[0]), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)


def _forget_old_runs(folder: Path) -> None:
    oldest = time.time() - _KEEP_NOTES_S
    for notes in folder.glob("*"):
        with suppress(FileNotFoundError):
            if notes.stat().st_mtime < oldest:
                shutil.rmtree(notes, ignore_errors=True)


@contextmanager
def _locked(note: Path) -> Iterator[None]:
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".part.")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(partial, path)
