"""Do seams stay where windows met in earlier steps?

    python -m benchmarks.windows_early --clips 6 --variant "rotating, 2 settling"

A layout is judged at the borders of its last step. Where windows move from step to step, the
borders of the steps before lie elsewhere: here the same picture is measured at those too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.windows_study import Point, Study, points
from benchmarks.windows_table import variants
from musev.quality.seams import seam_ratio


def seams_by_step(study: Study, point: Point) -> dict[int, float]:
    """Render a point and measure it at the borders of every step.

    Args:
        study: Renders.
        point: What.

    Returns:
        Seam ratio against the drawn truth, by step; NaN where a step has no borders.
    """
    frames_TYXC, truth_TYXC = study.render(point)[1:], study.truth(point)[1:]
    return {
        step: seam_ratio(frames_TYXC, study.windows_at(point, step), truth_TYXC).value
        for step in range(point.num_steps)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a clip and variant.

    Args:
        arguments: Command line; None for the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--frames", type=int, default=97, help="the first is given")
    names = [variant.name for variant in variants()]
    parser.add_argument("--variant", action="append", default=[], choices=names, metavar="NAME")
    given = parser.parse_args(arguments)
    chosen = given.variant or ["rotating, 1 settling, linear", "rotating, 2 settling, linear"]
    with tempfile.TemporaryDirectory(prefix="musev-early-") as scratch:
        study = Study(given.profile, num_frames=given.frames, guidance=1.0, scratch=Path(scratch))
        for point in points(given.clips, given.seeds, [given.steps], chosen):
            found = seams_by_step(study, point)
            told = "  ".join(f"{step}: {value:.3f}" for step, value in found.items())
            sys.stdout.write(f"clip {point.clip}, {point.variant.name}  {told}\n")


if __name__ == "__main__":
    main()
