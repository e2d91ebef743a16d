"""Resumable state on any fsspec store: written whole under a new name, the newest few kept.

``OUT/step-00001200.pt`` holds plain values and tensors and is read with ``weights_only``. The
number in the name is how many updates it has seen.
"""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import fsspec
import torch

from musev.errors import WeightsError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})\.pt$")


class CheckpointStore:
    """A folder of checkpoints.

    Args:
        uri: Local path or fsspec URI of the folder.
        keep: How many of the newest stay.
        **storage_options: For fsspec.
    """

    def __init__(self, uri: str, *, keep: int = 2, **storage_options: Any) -> None:
        self._files, root = fsspec.core.url_to_fs(uri, **storage_options)
        self.root = root.rstrip("/")
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, in order."""
        self._files.invalidate_cache()
        if not self._files.exists(self.root):
            return []
        found = (_NAME.search(name) for name in self._files.ls(self.root, detail=False))
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove the oldest beyond ``keep``.

        Args:
            step: Updates done.
            state: Nested dicts and lists of tensors and plain values.
        """
        buffer = io.BytesIO()
        torch.save({"step": step, **state}, buffer)
        self.put_bytes(f"step-{step:08d}.pt", buffer.getvalue())
        for old in self.steps()[: -self.keep]:
            self._files.rm_file(self._path(old))

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole: readers see the old one or the new one.

        Args:
            name: Relative to the folder; one leading ``../`` names the folder above.
            data: All of it.
        """
        folder = self.root.rpartition("/")[0] if name.startswith("../") else self.root
        target = f"{folder}/{name.removeprefix('../')}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        if "file" in _protocols(self._files):
            # A process that dies while writing leaves only a name that no reader looks at.
            self._files.pipe_file(target + ".part", data)
            self._files.mv(target + ".part", target)
        else:
            self._files.pipe_file(target, data)

    def load(self, step: int | None = None) -> dict[str, Any] | None:
        """Read a checkpoint; a damaged newest one is passed over for the one before it.

        Only damage is passed over: a store that does not answer raises its own error, since the
        next try may well find the newest checkpoint whole.

        Args:
            step: Which; None for the newest that can be read.

        Returns:
            The state with its ``step``, on the CPU; None if there is none at all.

        Raises:
            WeightsError: If the one asked for is not there, or it, or every one, is damaged.
        """
        steps = [step] if step is not None else self.steps()[::-1]
        for number in steps:
            try:
                data = self._files.cat_file(self._path(number))
            except FileNotFoundError:
                logger.warning("checkpoint %s is not there", self._path(number))
                continue
            try:
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            except Exception as error:  # noqa: BLE001 - whatever torch finds wrong with the bytes
                logger.warning("checkpoint %s cannot be read: %s", self._path(number), error)
        if steps:
            raise WeightsError(f"no readable checkpoint in {self.root}; tried steps {steps}")
        return None

    def _path(self, step: int) -> str:
        return f"{self.root}/step-{step:08d}.pt"


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
