"""A real local Ray for tests: its own temporary folder with a short path, always shut down."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def local_ray() -> Iterator[None]:
    """Start Ray as the job does on one machine; joins no other, leaves nothing behind."""
    import ray

    from pipelines.resources import connect

    folder = tempfile.mkdtemp(prefix="mvr", dir="/tmp")
    quiet = {"RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with mock.patch.dict(os.environ, quiet):
        os.environ.pop("RAY_ADDRESS", None)
        try:
            assert connect(), "a Ray was running already"
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
