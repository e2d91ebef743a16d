"""How many frames of drawn people one core makes in a second, and where the time goes.

    python benchmarks/synthetic_speed.py                         # 128x128, clips of 12 frames
    python benchmarks/synthetic_speed.py --size 256x256 --frames 24 --json speed.json

A frame counts with its control drawing, mask and keypoints; the reference, scene and caption of its
clip are part of the cost. Seconds are processor time of this process, OpenCV on one thread. On a
busy machine every clip is drawn several times and its fastest run counts (``best``); ``mean`` is
the plain average over all runs, and the load average says how much to trust either.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from musev.control.drawing import draw_skeletons
from musev.synthetic.clips import draw_clip


def measure(draw: Callable[[int], object], *, clips: int, repeats: int) -> tuple[float, float]:
    """Time a drawing for several clips.

    Args:
        draw: Draws the clip of a number.
        clips: How many clips.
        repeats: How often each.

    Returns:
        ``(best_s, mean_s)`` a clip: the average of each clip's fastest run, and of all runs.
    """
    seconds = np.empty((repeats, clips))
    for repeat in range(repeats):
        for index in range(clips):
            start = time.process_time()
            draw(index)
            seconds[repeat, index] = time.process_time() - start
    return float(seconds.min(axis=0).mean()), float(seconds.mean())


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Frames of drawn people a second, on one core.")
    parser.add_argument("--size", default="128x128", help="width x height")
    parser.add_argument("--frames", type=int, default=12, help="frames a clip")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    cv2.setNumThreads(1)

    def draw(index: int) -> object:
        return draw_clip(0, index, height=height, width=width, num_frames=options.frames)

    drawn = [draw(index) for index in range(options.clips)]  # also warms every cache

    def draw_controls(index: int) -> object:
        clip = drawn[index]
        return draw_skeletons(clip.points_TJ2, clip.visible_TJ, height=height, width=width)

    report = {"size": options.size, "frames": options.frames, "clips": options.clips}
    for name, work in (("all", draw), ("control", draw_controls)):
        best_s, mean_s = measure(work, clips=options.clips, repeats=options.repeats)
        report[f"{name}_best_us_a_frame"] = round(best_s / options.frames * 1e6, 1)
        report[f"{name}_mean_us_a_frame"] = round(mean_s / options.frames * 1e6, 1)
        if name == "all":
            report["best_frames_a_second"] = round(options.frames / best_s)
            report["mean_frames_a_second"] = round(options.frames / mean_s)
    report["load_average"] = round(os.getloadavg()[0], 2)
    report["person_share"] = round(
        statistics.mean(float(clip.mask_TYX.mean()) / 255 for clip in drawn), 3
    )
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
