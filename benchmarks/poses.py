"""Poses found by the embedded engine: frames a second of one core, and docs/images/poses.png.

python benchmarks/poses.py --pictures ../shared/media [--sheet docs/images/poses.png]
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
from PIL import Image

from musev.control.person import PARTS, FramePoses
from musev.control.pose_colors import read_pose_colors
from musev.control.pose_drawing import draw_people
from musev.control.pose_embedded import EmbeddedEngine

HEIGHT_PX = 300
REPEATS = 20
BENCH_HEIGHT_PX = 768


def main() -> None:
    """Find, count, draw and time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=Path("../shared/media"))
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    paths = sorted(options.pictures.glob("*.jpg"))
    if not paths:
        print(f"no pictures (*.jpg) in {options.pictures}: name a folder with --pictures")
        return
    engine = EmbeddedEngine()
    columns = []
    for path in paths:
        frame_YXC = np.asarray(Image.open(path).convert("RGB"))
        (people,) = engine.find(frame_YXC[None])
        print(f"{path.name}: {count_points(people)}")
        columns.append(draw_column(frame_YXC, people))
    if options.sheet:
        sheet = Image.fromarray(np.concatenate(columns, axis=1))
        sheet.save(options.sheet, optimize=True)
        print(f"{options.sheet}: {options.sheet.stat().st_size / 1000:.0f} KB")
    time_engine(engine, paths[0])


def count_points(people: FramePoses) -> str:
    """Points of each person that are sure enough to be drawn, in words."""
    if not people:
        return "nobody found"
    return "; ".join(
        ", ".join(f"{name} {(person.part(name)[:, 2] > 0.3).sum()}/{PARTS[name]}" for name in PARTS)
        for person in people
    )


def draw_column(frame_YXC: np.ndarray, people: FramePoses) -> np.ndarray:
    """The picture, dark and grey, with the drawing on it; below it the control map."""
    width = round(HEIGHT_PX * frame_YXC.shape[1] / frame_YXC.shape[0])
    grey = Image.fromarray(frame_YXC).convert("L").resize((width, HEIGHT_PX), Image.Resampling.BOX)
    small = np.asarray(grey)[..., None] // 8 * 8  # few greys: a small file
    # Drawn large and reduced, so that lines are thin and smooth.
    large = draw_people(people, height=2 * HEIGHT_PX, width=2 * width)
    map_YXC = np.asarray(Image.fromarray(large).resize((width, HEIGHT_PX), Image.Resampling.BOX))
    cover_YX1 = map_YXC.max(axis=2, keepdims=True) / 255
    overlay = (1 - cover_YX1) * small * 0.6 + map_YXC
    return np.concatenate([overlay.clip(0, 255).astype(np.uint8), map_YXC])


def time_engine(engine: EmbeddedEngine, path: Path) -> None:
    """Print CPU seconds of a frame with one person and of an empty one, and of the drawing."""
    picture = Image.open(path).convert("RGB")
    width = round(BENCH_HEIGHT_PX * picture.width / picture.height)
    frame_YXC = np.asarray(picture.resize((width, BENCH_HEIGHT_PX)))
    (people,) = engine.find(frame_YXC[None])
    map_YXC = draw_people(people, height=BENCH_HEIGHT_PX, width=width)
    works = {
        "find one person": lambda: engine.find(frame_YXC[None]),
        "find nobody": lambda: engine.find(np.zeros_like(frame_YXC)[None]),
        "draw": lambda: draw_people(people, height=BENCH_HEIGHT_PX, width=width),
        "read back from colours": lambda: read_pose_colors(map_YXC),
    }
    print(f"{width}x{BENCH_HEIGHT_PX}, {platform.processor() or platform.machine()}, CPU time:")
    for name, work in works.items():
        work()
        started = time.process_time()
        for _ in range(REPEATS):
            work()
        spent_s = (time.process_time() - started) / REPEATS
        print(f"  {name}: {1000 * spent_s:.0f} ms a frame, {1 / spent_s:.1f} frames/s a core")


if __name__ == "__main__":
    main()
