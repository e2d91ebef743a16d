"""Frames of a stream in any order: each is produced once and kept compressed in a scratch file.

Axes here: Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import tempfile
import zlib
from array import array
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from musev.errors import MediaError

_FAST = 1
"""Of zlib's nine levels: drawings of skeletons shrink fiftyfold at the first already."""


class FrameStore:
    """A stream of frames that can be read by number, again and again.

    A frame costs eight bytes of memory; its pixels lie in an unnamed file of the temporary folder,
    which is gone when the store is closed or its process dies. The stream is read only as far as
    frames are asked for. Use it as a context manager.
    """

    def __init__(self, frames: Iterator[np.ndarray], *, name: str) -> None:
        """Open the store.

        Args:
            frames: ``image_YXC``, uint8, all of one size.
            name: What the frames are, for errors.
        """
        self._frames = frames
        self._name = name
        self._file = tempfile.TemporaryFile()
        self._ends = array("q", [0])
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back and stop the stream."""
        self._file.close()
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()

    def read(self, number: int) -> np.ndarray:
        """Read one frame.

        Args:
            number: From 0.

        Returns:
            ``image_YXC``: uint8.

        Raises:
            MediaError: If the stream ends before that frame.
        """
        while number >= len(self._ends) - 1:
            self._take_next(number)
        first, stop = self._ends[number : number + 2]
        self._file.seek(first)
        pixels = zlib.decompress(self._file.read(stop - first))
        return np.frombuffer(pixels, np.uint8).reshape(self._shape)

    def _take_next(self, wanted: int) -> None:
        frame_YXC = next(self._frames, None)
        if frame_YXC is None:
            raise MediaError(
                f"{self._name}: frame {wanted} is needed, but there are only "
                f"{len(self._ends) - 1}. Give a longer video, or ask for fewer frames."
            )
        self._shape = frame_YXC.shape
        self._file.seek(self._ends[-1])
        written = self._file.write(zlib.compress(np.ascontiguousarray(frame_YXC).data, _FAST))
        self._ends.append(self._ends[-1] + written)
