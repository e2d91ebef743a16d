"""What a job says while it runs, and how it is broken off."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

INTERRUPTED = 130
"""Exit status of a run that was broken off by Ctrl-C or SIGTERM."""


class Teller:
    """Writes lines for a person; on a terminal the progress line stays in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_place = stream.isatty()
        self._every_s = 1.0 if self._in_place else 10.0
        self._told_at = float("-inf")
        self._last_line = ""

    def say(self, line: str) -> None:
        """Write a line of its own."""
        erase = "\r\x1b[2K" if self._in_place else ""
        self._stream.write(f"{erase}{line}\n")
        self._stream.flush()

    def wants_progress(self, *, last: bool) -> bool:
        """Whether the progress line was told long enough ago."""
        return last or time.monotonic() - self._told_at >= self._every_s

    def progress(self, line: str, *, last: bool) -> None:
        """Write the progress line, unless it says nothing new."""
        self._told_at = time.monotonic()
        if line == self._last_line:
            return
        self._last_line = line
        if self._in_place and not last:
            self._stream.write(f"\r\x1b[2K{line}")
            self._stream.flush()
        else:
            self.say(line)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM (``ray job stop``) like Ctrl-C, so that the run ends in order."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_command(command: Sequence[str], folder: Path) -> int:
    """Run another job as a user would, in a process of its own that shares the terminal.

    Args:
        command: Program and arguments.
        folder: Where it runs.

    Returns:
        Its exit status; that of an interrupted run if Ctrl-C ended it.
    """
    try:
        return subprocess.run(command, cwd=folder, check=False).returncode
    except KeyboardInterrupt:  # the job got the signal too and has ended by now
        return INTERRUPTED


def disconnect() -> None:
    """Leave the cluster, if this process has joined one."""
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()
