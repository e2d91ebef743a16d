"""Weights that lie on object storage or a hub, copied once a machine into a folder of the user's.

A part is a file or a folder; of a folder the configs, the licence and one weights file are fetched.
What was fetched is recorded with its digests beside the copy, and checked against what the source
says of them (``SHA256SUMS`` in the folder, or a hub's own checksums). A copy is whole or not there.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from musev.errors import WeightsError

logger = logging.getLogger(__name__)

RECORD = "musev_download.json"
SUMS = "SHA256SUMS"
Choose = Callable[[Sequence[str]], Sequence[str]]
"""Names of a folder's files to those that are needed."""

_PIECE_BYTES = 1 << 22
# Whatever a filesystem tells of a file that changes when its content does.
_MARKS = ("size", "ETag", "etag", "blob_id", "md5Hash", "mtime", "LastModified", "created")


def is_remote(address: str) -> bool:
    """Whether an address is a URL and no path of this machine."""
    return "://" in address and not address.startswith("file://")


def default_folder() -> Path:
    """Where copies lie (``MUSEV_WEIGHTS_CACHE`` overrides it)."""
    return Path(os.environ.get("MUSEV_WEIGHTS_CACHE", Path.home() / ".cache" / "musev" / "weights"))


def local_part(base: str, name: str = "", *, choose: Choose, folder: Path | None = None) -> Path:
    """Make a file or folder of weights available on this machine.

    Args:
        base: A path, returned as it is, or an fsspec URL such as ``s3://bucket/models`` or
            ``hf://owner/repository``.
        name: Of a part below it; empty for ``base`` itself.
        choose: Which files of a folder are needed.
        folder: Where copies lie; None for :func:`default_folder`.

    Returns:
        The path; with a URL that of the copy.

    Raises:
        WeightsError: If it cannot be fetched, or is not what the source says it is.
    """
    if not is_remote(base):
        path = Path(base.removeprefix("file://"))
        return path / name if name else path
    return _fetched(base.rstrip("/"), name, choose, folder or default_folder())


@functools.lru_cache(maxsize=256)
def _fetched(base: str, name: str, choose: Choose, folder: Path) -> Path:
    """Asked once a process: parts of a run do not change under it."""
    url = posixpath.join(base, name) if name else base
    root = folder / hashlib.sha256(base.encode()).hexdigest()[:20]
    target = root / (name or "_" + posixpath.basename(base))
    with _locked(root / f"{name.replace('/', '_') or '_'}.lock"), _told(url):
        try:
            wanted = _look_up(url, choose)
        except FileNotFoundError:
            raise WeightsError(f"{url} does not exist. Check the weights settings.") from None
        except OSError as error:
            if (target / RECORD).is_file():
                logger.warning("%s is not reachable (%s); taking the copy", url, error)
                return _content(target)
            raise
        if _record(target).get("marks") != wanted.marks:
            _download(url, wanted, target)
        return _content(target)


class _Wanted:
    """Files of one part, as their source tells them."""

    def __init__(self, filesystem: Any, files: dict[str, dict[str, Any]], is_folder: bool) -> None:
        self.filesystem = filesystem
        self.files = files
        self.is_folder = is_folder

    @property
    def marks(self) -> dict[str, dict[str, str]]:
        return {
            name: {mark: str(info[mark]) for mark in _MARKS if info.get(mark) is not None}
            for name, info in self.files.items()
        }


def _look_up(url: str, choose: Choose) -> _Wanted:
    filesystem, path = fsspec.url_to_fs(url)
    filesystem.invalidate_cache()
    info = filesystem.info(path)
    if info["type"] == "file":
        return _Wanted(filesystem, {posixpath.basename(path): info}, is_folder=False)
    listed = {
        posixpath.basename(item["name"]): item
        for item in filesystem.ls(path, detail=True)
        if item["type"] == "file"
    }
    if not listed:
        raise FileNotFoundError(path)
    names = [*choose(sorted(listed)), *([SUMS] if SUMS in listed else [])]
    return _Wanted(filesystem, {name: listed[name] for name in names}, is_folder=True)


def _download(url: str, wanted: _Wanted, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    total = sum(info.get("size") or 0 for info in wanted.files.values())
    logger.info("fetching %s (%.1f MB)", url, total / 1e6)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        digests = {}
        for name, info in wanted.files.items():
            digests[name] = _copy(wanted.filesystem, info["name"], partial / name)
            _check(url, name, info, partial / name, digests[name])
        _check_sums(url, partial / SUMS, digests)
        record = {
            "url": url,
            "folder": wanted.is_folder,
            "marks": wanted.marks,
            "sha256": digests,
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy(filesystem: Any, source: str, target: Path) -> str:
    digest = hashlib.sha256()
    with filesystem.open(source, "rb") as reading, target.open("wb") as writing:
        while piece := reading.read(_PIECE_BYTES):
            digest.update(piece)
            writing.write(piece)
    return digest.hexdigest()


def _check(url: str, name: str, info: dict[str, Any], copy: Path, digest: str) -> None:
    size, found = info.get("size"), copy.stat().st_size
    if size is not None and size != found:
        raise WeightsError(f"{url}: {name} has {size} bytes, but {found} arrived. Try again.")
    told = info.get("lfs") or {}
    expected = told.get("sha256") if isinstance(told, dict) else getattr(told, "sha256", None)
    if expected and expected != digest:
        raise WeightsError(f"{url}: {name} is damaged: SHA-256 {digest}, its hub says {expected}")


def _check_sums(url: str, sums: Path, digests: dict[str, str]) -> None:
    if not sums.is_file():
        return
    for line in sums.read_text().splitlines():
        expected, _, name = line.strip().partition(" ")
        found = digests.get(name.strip().removeprefix("*"))
        if found is not None and found != expected.lower():
            raise WeightsError(
                f"{url}: {name.strip()} is damaged: SHA-256 {found}, {SUMS} says {expected}"
            )


def _record(target: Path) -> dict[str, Any]:
    try:
        return json.loads((target / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _content(target: Path) -> Path:
    """The folder itself, or the one file in it."""
    record = _record(target)
    return target if record["folder"] else target / next(iter(record["marks"]))


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise WeightsError(
            f"{url}: no driver for this kind of address ({error}). Install it: "
            "pip install 'musev[s3]', 'musev[gcs]' or huggingface_hub, or copy the files by hand."
        ) from None
    except WeightsError:
        raise
    except Exception as error:  # drivers raise what their own libraries do
        raise WeightsError(f"{url} cannot be fetched ({type(error).__name__}: {error})") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the others find the copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
