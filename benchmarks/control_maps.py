"""Frames a second and core of every control map whose weights are here, and a sheet of the maps.

    python benchmarks/control_maps.py
    python benchmarks/control_maps.py --picture P.jpg --weights annotators=FOLDER --sheet maps.png

Every name of the table is tried; those whose files or packages are missing are listed with what
they lack. Seconds are processor time of this process, so that other work on the machine counts
little; opening a detector is not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from musev.config import ControlConfig
from musev.control.control_names import CONTROLS
from musev.control.detectors import open_detector
from musev.errors import WeightsError

MIN_SECONDS = 1.0
MAX_FRAMES = 40
MAX_COLORS = 4096


@dataclass(frozen=True)
class Measured:
    """One name: its map of the picture and its speed, or what it lacks."""

    name: str
    map_YXC: np.ndarray | None = None
    frames_a_second: float = 0.0
    lacks: str = ""


def read_frame(path: Path, height: int) -> np.ndarray:
    """A picture at a height, its width to a multiple of 8."""
    picture = Image.open(path).convert("RGB")
    width = round(picture.width * height / picture.height / 8) * 8
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def measure(name: str, frame_YXC: np.ndarray, config: ControlConfig) -> Measured:
    """Open a detector and run it until there is something to measure."""
    try:
        detector = open_detector(name, config, device="cpu")
    except WeightsError as error:
        return Measured(name, lacks=str(error))
    map_YXC = detector.maps(frame_YXC[None])[0]
    started, count = time.process_time(), 0
    while count < MAX_FRAMES and (count == 0 or time.process_time() - started < MIN_SECONDS):
        detector.maps(frame_YXC[None])
        count += 1
    spent = time.process_time() - started
    return Measured(name, map_YXC, count / max(spent, 1e-9))


def draw_sheet(frame_YXC: np.ndarray, found: list[Measured], columns: int) -> Image.Image:
    """The picture and its maps side by side, each with its name under it; equal maps once."""
    cells: dict[bytes, tuple[list[str], np.ndarray]] = {frame_YXC.tobytes(): ([], frame_YXC)}
    for item in found:
        if item.map_YXC is not None:
            cells.setdefault(item.map_YXC.tobytes(), ([], item.map_YXC))[0].append(item.name)
    height, width = frame_YXC.shape[:2]
    gap, label = 6, 34
    rows = math.ceil(len(cells) / columns)
    size = (columns * (width + gap) + gap, rows * (height + label + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (names, picture) in enumerate(cells.values()):
        x = gap + number % columns * (width + gap)
        y = gap + number // columns * (height + label + gap)
        sheet.paste(few_colors(Image.fromarray(picture)), (x, y))
        text = ["picture", *names] if number == 0 else names
        for line in range(0, len(text), 2):
            shown = ", ".join(text[line : line + 2])
            pen.text((x, y + height + 2 + line // 2 * 15), shown, fill="black", font=font)
    return sheet


def few_colors(picture: Image.Image) -> Image.Image:
    """Fewer colours where there are many or only greys, so that the file is small."""
    colors = picture.getcolors(MAX_COLORS)
    grey = colors is not None and all(len(set(color)) == 1 for _, color in colors)
    if colors is not None and not grey:
        return picture
    count = 16 if grey else 64
    return picture.quantize(count, dither=Image.Dither.NONE).convert("RGB")


def main() -> None:
    """Measure, print, and draw the sheet if asked."""
    parser = argparse.ArgumentParser(description="Speed of control maps, and what they look like.")
    parser.add_argument("--picture", type=Path, default=Path("../shared/media/Mona_Lisa.jpg"))
    parser.add_argument("--height", type=int, default=768, help="rows of the measured frame")
    parser.add_argument("--names", nargs="*", default=list(CONTROLS), help="control names")
    parser.add_argument("--weights", nargs="*", default=[], help="NAME=FOLDER, as control.weights")
    parser.add_argument("--sheet", type=Path, help="write a picture of all maps here")
    parser.add_argument("--sheet-height", type=int, default=248)
    parser.add_argument("--columns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    config = ControlConfig(weights=dict(text.split("=", 1) for text in options.weights))
    frame = read_frame(options.picture, options.height)
    found = [measure(name, frame, config) for name in options.names]
    print(f"one frame of {frame.shape[1]}x{frame.shape[0]}, one thread")
    for item in found:
        speed = f"{item.frames_a_second:9.2f}" if item.map_YXC is not None else item.lacks
        print(f"{item.name:18} {speed}")
    if options.json:
        rows = [
            {"name": i.name, "frames_a_second": i.frames_a_second, "lacks": i.lacks} for i in found
        ]
        options.json.write_text(json.dumps(rows, indent=1))
    if options.sheet:
        small = read_frame(options.picture, options.sheet_height)
        size = (small.shape[1], small.shape[0])
        shown = [
            Measured(i.name, np.asarray(Image.fromarray(i.map_YXC).resize(size)))
            for i in found
            if i.map_YXC is not None
        ]
        shown = [Measured(i.name, small) if i.name == "tile" else i for i in shown]
        draw_sheet(small, shown, options.columns).save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
