"""The one place that starts ffmpeg (the program inside the imageio-ffmpeg wheel).

Inputs are named ``file:/absolute/path`` and protocols are limited to local ones, so neither a path
that starts with a dash nor a playlist with addresses in it makes ffmpeg do anything else.
"""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import imageio_ffmpeg

from musev.errors import MediaError

_log = logging.getLogger(__name__)

LOCAL_ONLY = ("-protocol_whitelist", "file,pipe,fd")
SCALER_FLAGS = "bicubic+accurate_rnd+full_chroma_int+bitexact"
"""For colour conversion: the same numbers on every kind of processor."""
_LAST_LINES = 12


def input_name(path: Path) -> str:
    """Name a file so that ffmpeg cannot take it for an option, a protocol or a pattern."""
    return f"file:{path.absolute()}"


def check_file(path: Path) -> None:
    """Refuse a file that ffmpeg could only complain about in its own words.

    Args:
        path: The file.

    Raises:
        MediaError: If there is no such file, or it is empty.
    """
    if not path.is_file():
        raise MediaError(f"{path}: no such file. Check the path.")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty (0 bytes). Upload or copy it again.")


def run_ffmpeg(arguments: Sequence[str], *, what: str, stdin: bytes = b"") -> tuple[str, str]:
    """Run ffmpeg to its end.

    Args:
        arguments: Everything after the program's name.
        what: What is being done to which file; starts the error message.
        stdin: Bytes handed to standard input.

    Returns:
        What it wrote to standard output and to standard error.

    Raises:
        MediaError: If it fails; the message ends with ffmpeg's last lines.
    """
    done = subprocess.run([*_command(), *arguments], input=stdin, capture_output=True, check=False)
    errors = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        raise MediaError(_failure(what, done.returncode, errors))
    return done.stdout.decode(errors="replace"), errors


@contextlib.contextmanager
def stream_ffmpeg(
    arguments: Sequence[str], *, what: str, feed: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ffmpeg while the body feeds its standard input or reads its standard output.

    Leaving the body early, by ``break`` or an error of its own, stops the program.

    Args:
        arguments: Everything after the program's name.
        what: What is being done to which file; starts the error message.
        feed: True to write to ``stdin``, False to read from ``stdout``.

    Yields:
        The running program.

    Raises:
        MediaError: If it fails; the message ends with ffmpeg's last lines.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*_command(), *arguments],
            stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if feed else subprocess.PIPE,
            stderr=errors,
        )
        try:
            try:
                yield process
            except BrokenPipeError:
                _log.debug("ffmpeg stopped reading: %s", what)  # its exit status says why
            with contextlib.suppress(BrokenPipeError):
                _close(process.stdin)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            with contextlib.suppress(BrokenPipeError):
                _close(process.stdin)
            _close(process.stdout)
        if status != 0:
            errors.seek(0)
            raise MediaError(_failure(what, status, errors.read().decode(errors="replace")))


def _command() -> tuple[str, ...]:
    return imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-y"


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        pipe.close()


def _failure(what: str, status: int, errors: str) -> str:
    errors = re.sub(r" @ 0x[0-9a-f]+", "", errors)  # memory addresses: other ones every time
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = "; ".join(lines[-_LAST_LINES:]) or "no message"
    return f"{what}: ffmpeg failed with status {status}: {last}"
