"""A process's own folder for unfinished files; what killed processes left behind goes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def scratch_folder() -> Path:
    """Make this process's folder for unfinished files; remove those of killed processes.

    Returns:
        An empty folder; it stays until another process of this user finds this one gone.
    """
    parent = Path(tempfile.gettempdir()) / f"musev-scratch-{os.getuid()}"
    parent.mkdir(parents=True, exist_ok=True)
    for folder in parent.iterdir():
        if folder.name.isdigit() and not _alive(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)
    mine = parent / str(os.getpid())
    shutil.rmtree(mine, ignore_errors=True)
    mine.mkdir()
    return mine


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
