"""A machine's folder of media files: the same portrait in a thousand rows is fetched once.

Files are kept by content digest. What a URI held is remembered per run only, so a file that changes
between two runs is seen. Any number of processes of a machine share one folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
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
"""A single file above this is refused before it is fetched."""

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
        notes = self._root / "uris" / self.run_id
        if not notes.exists():
            _forget_old_runs(notes.parent)
        note = notes / hashlib.sha256(uri.encode()).hexdigest()
        with _locked(note):
            if note.exists():
                digest = note.read_text()
                with suppress(FileNotFoundError):
                    return digest, self._read(digest)
            content = self._download(uri)
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            self._store(digest, content)
            _write_whole(note, digest.encode())
        return digest, content

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
            raise MediaError(
                f"{uri} changed while the job was running: it was {digest} when the row was "
                f"checked and is {found} now. Run the job again to render the new content."
            )
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

    def _download(self, uri: str) -> bytes:
        try:
            filesystem, path = fsspec.core.url_to_fs(uri, **self.storage_options)
            size = filesystem.size(path)
            if size is not None and size > MAX_FILE_BYTES:
                raise MediaError(
                    f"{uri} has {size / 2**20:.0f} MiB; a file may have "
                    f"{MAX_FILE_BYTES / 2**20:.0f}. Give a smaller file."
                )
            return filesystem.cat_file(path)
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
                "of reach for a while, run the same command again."
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
