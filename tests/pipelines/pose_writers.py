"""A stage that takes its worker down; a module of its own, so that workers can import it."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.outcomes import Row
from pipelines.stages.write_poses import WritePoses


class DiesOnce(WritePoses):
    """Takes its worker down at the first row it is given, once; fails a row of prompt ``!fail``."""

    def __call__(self, row: Row) -> Row:
        mark = Path(self._store.uri_of("died").removeprefix("file://"))
        if not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os._exit(9)
        if row["prompt"].startswith("!fail"):
            row = {**row, "num_frames": "many"}
        return super().__call__(row)
