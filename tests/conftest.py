"""What tests of every package use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a short path: Ray's sockets below it must stay under 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="mv", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
