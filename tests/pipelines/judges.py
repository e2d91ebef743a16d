"""Judges that take their worker down; a module of its own, so that workers can import it."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.outcomes import Row
from pipelines.stages.judge import JudgeClip


class DiesOnce(JudgeClip):
    """Takes its worker down at the first video it is given, once."""

    def __call__(self, row: Row) -> Row:
        mark = Path(self._ledger.out_uri).parent / "died"
        if not mark.exists():
            mark.touch()
            os._exit(9)
        return super().__call__(row)


class DiesAtTwo(JudgeClip):
    """Takes its worker down whenever it is given the second video."""

    def __call__(self, row: Row) -> Row:
        if row["sample_id"] == "two":
            os._exit(9)
        return super().__call__(row)
