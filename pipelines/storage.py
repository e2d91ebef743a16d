"""Whole-object storage on fsspec: create-if-absent, put, read, list, delete, with retries.

Knows nothing of videos or rows. Every object appears whole or not at all, and :meth:`Store.create`
lets exactly one writer win. Objects are never renamed on an object store.

How create-if-absent is done:

* S3: a put with ``If-None-Match: *``. Clients below us retry on their own, so a 412 may mean that
  *our own* earlier try arrived; and after a time-out nobody knows. In both cases we read back: the
  caller gets whatever lies there now and compares it with what it wanted to write.
* Google and Azure: the same through fsspec's ``mode="create"``. (Written against their fsspec
  packages, checked by the probe at the start of each run, never run against the real services.)
* Local folders: write a temporary file, fsync, ``os.link`` to the final name, fsync the folder.
* ``memory://``: a lock; one process only, for tests.

Every other filesystem is refused: fsspec's own default for ``mode="create"`` looks first and writes
afterwards, and two writers can both win that.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import random
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from musev.errors import StorageError

logger = logging.getLogger(__name__)

LOCAL = ("file", "local")
MEMORY = ("memory",)
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
TEMPORARY = "work/.temporary"
"""Where local files grow before they get their name; holds nothing that matters after a crash."""

NUM_TRIES = 5
FIRST_DELAY_S = 0.2
NUM_THREADS = 32
COPY_BYTES = 8 * 2**20

# We try again ourselves; three layers of patience on top of each other would take minutes to fail.
_S3_PATIENCE = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"mode": "standard", "max_attempts": 2},
}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_EXTRAS |= dict.fromkeys(("az", "abfs", "abfss"), "azure")

# Errors of storage clients that are no OSError; looked up only where the client is loaded already.
_CLIENT_ERRORS = (
    ("asyncio", "TimeoutError"),
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)
# Answers that no second try will change.
_FINAL_STATUS = frozenset({400, 401, 403, 404, 405, 411, 413, 416, 501})
_FINAL_ERRORS = (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
_NEVER_SENT = frozenset({"EndpointConnectionError", "ConnectTimeoutError"})
_FINAL_NAMES = frozenset({"NoCredentialsError", "ParamValidationError"})

_memory_lock = threading.Lock()
_Result = TypeVar("_Result")


class Store:
    """The objects below one URL; paths are relative to it and use ``/``.

    Picklable: connects on first use, in whatever process that happens. Every method that touches
    the store raises :class:`StorageError` if it refuses or stays silent; those that read one object
    raise ``FileNotFoundError`` if it is not there.

    Attributes:
        uri: The URL, without a slash at the end.
    """

    def __init__(self, uri: str, storage_options: dict[str, Any] | None = None) -> None:
        """Name the place; nothing is contacted yet.

        Args:
            uri: Any fsspec URL or a local path; a slash at the end changes nothing.
            storage_options: Options of the fsspec filesystem, for example ``endpoint_url``.

        Raises:
            StorageError: If the filesystem has no atomic create-if-absent.
        """
        protocol, _, rest = uri.partition("://") if "://" in uri else ("file", "", uri)
        if protocol not in (*LOCAL, *MEMORY, *OBJECT_STORES):
            raise StorageError(
                f"output {uri!r}: {protocol}:// has no create-if-absent, so two workers could both "
                "believe they finished the same video. Use a local folder, s3://, gs:// or az://."
            )
        if not rest.strip("/"):
            raise StorageError(
                f"output {uri!r} names no bucket or folder. Give for example s3://BUCKET/FOLDER."
            )
        plain = protocol == "file" and "://" not in uri
        self.uri = str(Path(uri).expanduser().absolute()) if plain else uri.rstrip("/")
        self._protocol = protocol
        self._options = dict(storage_options or {})
        self._connection: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}

    @property
    def _fs(self) -> Any:
        return self._connect()[0]

    def _connect(self) -> tuple[Any, str]:
        if self._connection is None:
            options = dict(self._options)
            if self._protocol in OBJECT_STORES:
                # A listing remembered from before another process committed would be a lie.
                options.setdefault("use_listings_cache", False)
            if self._protocol in ("s3", "s3a"):
                options.setdefault("config_kwargs", _S3_PATIENCE)
            try:
                self._connection = fsspec.core.url_to_fs(self.uri, **options)
            except ImportError as error:
                raise StorageError(
                    f"output {self.uri!r} needs a package that is not installed: {error}. "
                    f"Install it with: pip install 'musev[{_EXTRAS.get(self._protocol, 's3')}]'"
                ) from error
            except (ValueError, TypeError) as error:
                raise StorageError(f"output {self.uri!r} cannot be opened: {error}") from error
        return self._connection

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        assert parts, "empty path"
        assert ".." not in parts, f"path {path!r} leaves the store"
        assert not path.startswith("/"), f"path {path!r} is not relative"
        return f"{self._connect()[1].rstrip('/')}/{path}"

    def uri_of(self, path: str) -> str:
        """Absolute URL of an object, for people and for other programs."""
        return f"{self.uri}/{path}"

    def local_path(self, path: str) -> Path | None:
        """Path of an object as a plain file, or None where the store is no local folder."""
        return Path(self._full(path)) if self._protocol in LOCAL else None

    def check(self) -> None:
        """Prove that the place can be written and that create-if-absent lets one writer win.

        Raises:
            StorageError: If it cannot be reached or written, or a second create wins too.
        """
        path = f"work/.probe/{uuid.uuid4().hex}"
        first = self.create(path, b"first")
        second = self.create(path, b"second")
        self.delete([path])
        if (first, second) != (b"first", b"first"):
            raise StorageError(
                f"{self.uri}: a create-if-absent put was accepted twice, so this store ignores the "
                "condition (If-None-Match). Use a store that keeps it: AWS S3, MinIO, Ceph from "
                "Reef, R2, Google Cloud Storage or Azure Blob."
            )

    def read(self, path: str) -> bytes:
        """Read an object whole.

        Args:
            path: Its path.

        Returns:
            Its content.
        """
        full = self._full(path)
        return self._retry("read", path, lambda: self._fs.cat_file(full), absent_is_final=True)

    def read_if_present(self, path: str) -> bytes | None:
        """Read an object whole, or None where there is none."""
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Read many small objects side by side; those that vanished meanwhile are left out."""
        wanted = list(paths)
        found = self._side_by_side(self.read_if_present, wanted)
        return {path: data for path, data in zip(wanted, found, strict=True) if data is not None}

    def fetch(self, path: str, target: Path) -> None:
        """Copy an object to a local file without holding it in memory.

        Args:
            path: Its path.
            target: The local file; overwritten.
        """
        full = self._full(path)

        def copy() -> None:
            with self._fs.open(full, "rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, COPY_BYTES)

        self._retry("read", path, copy, absent_is_final=True)

    def digest(self, path: str) -> tuple[str, int]:
        """Compute an object's SHA-256 and size by reading it through.

        Args:
            path: Its path.

        Returns:
            Hex digest and number of bytes.
        """
        full = self._full(path)

        def compute() -> tuple[str, int]:
            with self._fs.open(full, "rb") as source:
                return digest_stream(source)

        return self._retry("read", path, compute, absent_is_final=True)

    def list(self, folder: str) -> dict[str, int]:
        """List every object below a folder, however deep.

        Args:
            folder: Its path; need not exist.

        Returns:
            Path (relative to the store) to size in bytes, sorted by path.
        """
        root = self._connect()[1].rstrip("/")

        def find() -> dict[str, Any]:
            self._fs.invalidate_cache()
            try:
                return self._fs.find(self._full(folder), detail=True)
            except FileNotFoundError:
                return {}

        found = self._retry("list", folder, find)
        prefix = f"{root}/"
        return {
            name.removeprefix(prefix): int(info.get("size") or 0)
            for name, info in sorted(found.items())
            if info.get("type") == "file" and name.startswith(f"{prefix}{folder}/")
        }

    def create(self, path: str, data: bytes) -> bytes:
        """Write a small object unless there is one; exactly one of many writers wins.

        Args:
            path: Its path.
            data: Its content; must differ between writers, or they cannot know who won.

        Returns:
            What lies there now: equal to ``data`` if this writer won, the winner's content else.

        Raises:
            StorageError: If the store refuses, or never says what happened.
        """
        for _ in range(NUM_TRIES):
            if self._create(path, data):
                return data
            if (existing := self.read_if_present(path)) is not None:
                return existing
        raise StorageError(f"{self.uri_of(path)} appears and vanishes: is something deleting it?")

    def create_from_file(self, path: str, source: Path) -> bool:
        """Upload a local file unless there is an object of that name; it appears whole.

        Args:
            path: The object's path.
            source: The local file.

        Returns:
            True if this call surely created the object; False if one lies there and may be another
            writer's (compare it).
        """
        return self._create(path, source)

    def put(self, path: str, content: bytes | Path) -> None:
        """Write an object whole, replacing what was there.

        Args:
            path: Its path.
            content: Its content, or a local file that holds it.
        """

        def write() -> None:
            if self._protocol in LOCAL:
                self._write_local(path, content, os.replace)
            elif isinstance(content, Path) and self._protocol not in MEMORY:
                self._fs.put_file(str(content), self._full(path))
            else:
                self._fs.pipe_file(self._full(path), b"".join(_blocks(content)))

        self._retry("write", path, write)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error.

        Args:
            paths: Their paths.
        """

        def remove(path: str) -> None:
            full = self._full(path)
            try:
                self._retry("delete", path, lambda: self._fs.rm_file(full), absent_is_final=True)
            except FileNotFoundError:
                return

        self._side_by_side(remove, list(paths))

    def delete_folder(self, folder: str) -> int:
        """Delete every object below a folder; on local folders the empty folders go too.

        Args:
            folder: Its path; need not exist.

        Returns:
            How many objects were deleted.
        """
        paths = list(self.list(folder))
        self.delete(paths)
        if self._protocol in LOCAL:
            shutil.rmtree(self._full(folder), ignore_errors=True)
        return len(paths)

    def remove_old_files(self, folder: str, age_s: float = 86_400) -> None:
        """Delete files of a local folder that nobody has touched for long; elsewhere do nothing."""
        if self._protocol in LOCAL:
            for path in Path(self._full(folder)).glob("*"):
                if time.time() - path.stat().st_mtime > age_s:
                    path.unlink(missing_ok=True)

    def _create(self, path: str, content: bytes | Path) -> bool:
        """Try a conditional put until it is known to be done (True) or something lies there."""
        for trial in range(1, NUM_TRIES + 1):
            try:
                self._conditional_put(path, content)
                return True
            except FileExistsError:
                return False
            except _client_errors() as error:
                if _http_status(error) == 412:
                    return False
                if _may_have_arrived(error) and self._present(path):
                    return False
                if trial == NUM_TRIES or _is_final(error) or self._protocol in LOCAL:
                    raise self._failure("create", path, error) from error
                logger.warning("create %s: %s; trying again", self.uri_of(path), error)
                _pause(trial)
        raise AssertionError("the loop above returns or raises")

    def _conditional_put(self, path: str, content: bytes | Path) -> None:
        full = self._full(path)
        if self._protocol in LOCAL:
            self._write_local(path, content, os.link)
        elif self._protocol in MEMORY:
            with _memory_lock:
                self._fs.pipe_file(full, b"".join(_blocks(content)), mode="create")
        elif isinstance(content, Path):
            self._fs.put_file(str(content), full, mode="create")
        else:
            self._fs.pipe_file(full, content, mode="create")

    def _write_local(
        self, path: str, content: bytes | Path, place: Callable[[Path, Path], None]
    ) -> None:
        """Write and fsync a temporary file, give it its name with ``place``, fsync the folder."""
        target, folder = Path(self._full(path)), Path(self._full(TEMPORARY))
        _make_folder(folder)
        temporary = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as sink:
                for block in _blocks(content):
                    sink.write(block)
                sink.flush()
                os.fsync(sink.fileno())
            for trial in range(NUM_TRIES):
                _make_folder(target.parent)
                try:
                    place(temporary, target)
                    break
                except FileNotFoundError:  # the folder was cleared away by another process
                    if trial == NUM_TRIES - 1:
                        raise
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _present(self, path: str) -> bool:
        self._fs.invalidate_cache()
        return self._retry("look at", path, lambda: self._fs.isfile(self._full(path)))

    def _retry(
        self, verb: str, path: str, action: Callable[[], _Result], *, absent_is_final: bool = False
    ) -> _Result:
        """Run an action that may be repeated; a store that does not answer is a StorageError."""
        for trial in range(1, NUM_TRIES + 1):
            try:
                return action()
            except _client_errors() as error:
                if absent_is_final and _is_absent(error):
                    raise FileNotFoundError(self.uri_of(path)) from error
                if trial == NUM_TRIES or _is_final(error) or self._protocol in LOCAL:
                    raise self._failure(verb, path, error) from error
                logger.warning("%s %s: %s; trying again", verb, self.uri_of(path), error)
                _pause(trial)
        raise AssertionError("the loop above returns or raises")

    def _failure(self, verb: str, path: str, error: BaseException) -> StorageError:
        if self._protocol in LOCAL:
            remedy = "Check that the folder is on a disk with hard links, can be written, has room."
        elif _is_absent(error):
            remedy = "Create the bucket or container first."
        else:
            remedy = "Check the address, the credentials and the network, then run it again."
        return StorageError(
            f"cannot {verb} {self.uri_of(path)}: {type(error).__name__}: {error}. {remedy}"
        )

    def _side_by_side(self, action: Callable[[str], _Result], paths: list[str]) -> list[_Result]:
        if len(paths) < 2 or self._protocol in MEMORY:
            return [action(path) for path in paths]
        self._connect()
        with ThreadPoolExecutor(min(NUM_THREADS, len(paths))) as pool:
            return list(pool.map(action, paths))


def digest_stream(stream: Any) -> tuple[str, int]:
    """Compute the SHA-256 (hex) and the number of bytes of a binary stream."""
    digest, size = hashlib.sha256(), 0
    while block := stream.read(COPY_BYTES):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def _blocks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while block := stream.read(COPY_BYTES):
            yield block


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents; each new name is synced, so a power cut cannot lose it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pause(trial: int) -> None:
    time.sleep(FIRST_DELAY_S * 2 ** (trial - 1) * random.uniform(0.5, 1.5))


def _client_errors() -> tuple[type[BaseException], ...]:
    loaded = [(importlib.import_module(m), n) for m, n in _CLIENT_ERRORS if m in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded))


def _http_status(error: BaseException | None) -> int | None:
    """Find the HTTP status in an error or its causes; each client keeps it elsewhere."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for name in ("status_code", "code", "status"):
            if isinstance(value := getattr(error, name, None), int):
                return value
        error = error.__cause__
    return None


def _may_have_arrived(error: BaseException) -> bool:
    """Whether a put may be done although it failed; 409: another one is under way."""
    surely_not = _http_status(error) == 409 or type(error).__name__ in _NEVER_SENT
    return not surely_not and not _is_final(error)


def _is_absent(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or _http_status(error) == 404


def _is_final(error: BaseException) -> bool:
    return (
        isinstance(error, _FINAL_ERRORS)
        or _http_status(error) in _FINAL_STATUS
        or type(error).__name__ in _FINAL_NAMES
    )
