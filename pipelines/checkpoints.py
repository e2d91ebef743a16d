"""What of a half-denoised clip is kept in storage: ranges of frames, and finished segments.

    work/<id>/checkpoint/<first>-<stop>-<step>.safetensors   latents of a range at a step
    work/<id>/checkpoint/index-<n>.safetensors               one moment: its ranges, and estimates
                                                             that wait for a neighbour
    work/<id>/segments/<n>.mp4                               frames that are finished

A range's content follows from its name, so what lies there already is not written again, and any
attempt at the sample may go on from what another one left. Frames leave the checkpoint when their
segment is stored, never before.
"""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from musev.denoise.snapshots import Snapshot
from musev.errors import ShapeError, StorageError
from pipelines.ledger import Ledger

logger = logging.getLogger(__name__)

RANGE_FRAMES = 48
"""Longest range of frames in one object: 1.5 MB of latents at 512x512."""
_FOLDER, _SEGMENTS = "checkpoint", "segments"


class ClipStore:
    """The kept pieces of one sample.

    Args:
        ledger: Where to.
        sample_id: Of which sample.
    """

    def __init__(self, ledger: Ledger, sample_id: str) -> None:
        self._ledger = ledger
        self._sample_id = sample_id
        self._written: set[str] = set()
        self._number = 0

    def save(self, snapshot: Snapshot) -> int:
        """Write a snapshot; the newest index counts, and what it does not name is deleted.

        Args:
            snapshot: Of the clip.

        Returns:
            How many objects were written.
        """
        names, parts = _split(snapshot.tensors())
        new = [name for name in parts if name not in self._written]
        for name in new:
            self._put(name, save_tensors(parts[name]))
        self._number += 1
        index = f"index-{self._number:08d}.safetensors"
        self._put(index, save_tensors(names))
        for name in self._written - set(parts):
            self._delete(name)
        self._written = {*parts, index}
        return len(new) + 1

    def load(self) -> Snapshot | None:
        """Read the newest snapshot that is whole; None if there is none."""
        there = self._names(_FOLDER)
        indices = sorted((name for name in there if name.startswith("index-")), reverse=True)
        for index in indices:
            self._number = max(self._number, int(index[len("index-") : -len(".safetensors")]))
        for index in indices:
            try:
                snapshot, names = self._read(index)
            except (FileNotFoundError, KeyError, SafetensorError, ShapeError) as problem:
                logger.warning("checkpoint %s of %s: %s", index, self._sample_id, problem)
                continue
            self._written = {*names, index}
            return snapshot
        return None

    def segment_name(self, number: int) -> str:
        """Path of a segment below the output URL."""
        return f"work/{self._sample_id}/{_SEGMENTS}/{_segment(number)}"

    def segments(self) -> set[int]:
        """Numbers of the segments that are stored."""
        return {int(Path(name).stem) for name in self._names(_SEGMENTS)}

    def fetch_segment(self, number: int, target: Path) -> None:
        """Copy a segment to a local file."""
        self._ledger.fetch_work(self._sample_id, _SEGMENTS, _segment(number), target)

    def _read(self, index: str) -> tuple[Snapshot, list[str]]:
        tensors = load_tensors(self._get(index))
        names = []
        for first, stop, step in tensors["ranges"].tolist():
            name = _range_name(first, stop, step)
            if bool(tensors["kept"][len(names)]):
                for part, value in load_tensors(self._get(name)).items():
                    tensors[f"{first}-{stop}.{part}"] = value
            names.append(name)
        del tensors["kept"]
        return Snapshot.from_tensors(tensors), names

    def _names(self, folder: str) -> list[str]:
        prefix = f"work/{self._sample_id}/{folder}"
        return [Path(path).name for path in self._ledger.store.list(prefix)]

    def _get(self, name: str) -> bytes:
        return self._ledger.get_work(self._sample_id, _FOLDER, name)

    def _put(self, name: str, data: bytes) -> None:
        self._ledger.put_work(self._sample_id, _FOLDER, name, data)

    def _delete(self, name: str) -> None:
        try:
            self._ledger.store.delete([f"work/{self._sample_id}/{_FOLDER}/{name}"])
        except StorageError as error:  # one object too many; it goes when the row is settled
            logger.warning("checkpoint part %s stays for now: %s", name, error)


def _segment(number: int) -> str:
    return f"{number:06d}.mp4"


def _range_name(first: int, stop: int, step: int) -> str:
    return f"{first}-{stop}-{step}.safetensors"


def _split(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The index, and the tensors of each range under the name of its object."""
    import torch

    parts: dict[str, dict[str, Tensor]] = {}
    kept = []
    index = {name: tensors[name] for name in ("clip", "ranges", "waiting", "estimates")
             if name in tensors}  # fmt: skip
    for first, stop, step in tensors["ranges"].tolist():
        prefix = f"{first}-{stop}."
        found = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        kept.append(bool(found))
        if found:
            parts[_range_name(first, stop, step)] = found
    return index | {"kept": torch.tensor(kept)}, parts
