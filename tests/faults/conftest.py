"""A folder whose Ray sessions are ended with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.drivers import end_processes_of


@pytest.fixture
def folder(folder: Path) -> Iterator[Path]:
    yield folder
    for session in folder.glob("ray-*"):
        end_processes_of(session)
