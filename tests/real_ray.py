"""A real local Ray for tests: its own temporary folder with a short path, always shut down."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def local_ray(num_gpus: int = 0) -> Iterator[None]:
    """Start Ray on this machine; it joins no other and leaves nothing behind.

    Args:
        num_gpus: GPUs that Ray is to believe in.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="mvr", dir="/tmp")
    settings = {
        "RAY_TMPDIR": folder,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's default is 15: on a busy machine workers then starve beyond Ray's own time limits.
        "RAY_worker_niceness": "0",
    }
    with mock.patch.dict(os.environ, settings):
        os.environ.pop("RAY_ADDRESS", None)
        try:
            ray.init(
                address="local",
                num_gpus=num_gpus,
                include_dashboard=False,
                object_store_memory=128 * 2**20,
                log_to_driver=False,
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
