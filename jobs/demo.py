"""Render a small manifest of people end to end, as ``make demo`` does; safe to repeat.

Portraits come from ``../shared/media`` where that folder is there, and are drawn otherwise. The
networks of profile ``mini`` are small and untrained: the demo shows that the system runs, not what
a trained model draws.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.manifest import write_manifest

ROOT = Path(__file__).resolve().parents[1]
PORTRAITS = ROOT.parent / "shared" / "media"
OUTPUT = Path("out") / "demo"
NUM_WORKERS = 2
_DRAWN_PORTRAITS = 4
_WEIGHTS_NOTE = (
    "Note: the networks of profile 'mini' hold small random weights; nothing was trained.\n"
    "      The videos show that every stage runs, not what MuseV can draw."
)


def build_requests(portraits: list[str]) -> list[dict[str, Any]]:
    """Make the demo's manifest rows: people, different in picture, prompt, seed, size and length.

    Args:
        portraits: Paths of at least one portrait.

    Returns:
        Nine rows under manifest column names.
    """

    def face(index: int) -> str:
        return portraits[index % len(portraits)]

    rows: list[dict[str, Any]] = [
        {"condition_image": face(0), "prompt": "a woman smiles and turns her head slowly"},
        {"condition_image": face(1), "prompt": "a man rests his head on his hand, thinking"},
        {"condition_image": face(2), "prompt": "a painter looks up from the canvas", "seed": 7},
        {
            "condition_image": face(3),
            "prompt": "a laughing man lifts his hat",
            "motion_speed": 16.0,
        },
        {
            "condition_image": face(0),
            "reference_image": face(0),
            "ip_adapter_image": face(0),
            "prompt": "a woman in the evening light, wind in her hair",
            "guidance_scale": 3.0,
        },
        {
            "condition_image": face(1),
            "ip_adapter_image": face(2),
            "prompt": "a doctor in a garden, calm",
            "negative_prompt": "blurred, extra fingers",
            "motion_speed": 4.0,
        },
        {"prompt": "a dancer on a stage, full body", "reference_image": face(2), "seed": 11},
        {
            "condition_image": face(3),
            "prompt": "portrait of a cavalier, wide frame",
            "width": 160,
            "height": 96,
        },
        {
            "condition_image": face(0),
            "prompt": "a woman speaks to the camera, long shot in overlapping windows",
            "num_frames": 48,
            "motion_speed": 2.0,
        },
    ]
    return [
        {"request_id": f"demo-{number:02d}", "seed": number, **row}
        for number, row in enumerate(rows, start=1)
    ]


def find_portraits(folder: Path, *, drawn_into: Path) -> list[str]:
    """Take the portraits of a folder, or draw some where it has none.

    Args:
        folder: May hold ``*.jpg``; need not exist.
        drawn_into: Where drawn portraits are written, as PNG.

    Returns:
        Absolute paths, sorted.
    """
    given = sorted(folder.glob("*.jpg"))
    if given:
        return [str(path.resolve()) for path in given]
    from musev.media import encode_png
    from musev.synthetic.portraits import draw_portrait

    drawn_into.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(_DRAWN_PORTRAITS):
        path = drawn_into / f"portrait-{seed}.png"
        path.write_bytes(encode_png(draw_portrait(seed, width=256, height=256)))
        paths.append(str(path.resolve()))
    return paths


def main(argv: list[str] | None = None) -> int:
    """Build the manifest, run the main job on it as a user would, and say where everything is.

    Args:
        argv: Command line; None for the process's own.

    Returns:
        Exit status of the job.
    """
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for everything")
    parser.add_argument("--portraits", type=Path, default=PORTRAITS, help="folder of *.jpg")
    options = parser.parse_args(argv)
    say = _writer()

    started = time.monotonic()
    output: Path = options.output.resolve()
    portraits = find_portraits(options.portraits, drawn_into=output / "portraits")
    manifest = output / "manifest.parquet"
    requests = build_requests(portraits)
    write_manifest(requests, str(manifest))
    command = [
        *(sys.executable, "-m", "jobs.text_to_video"),
        *("--manifest", str(manifest), "--output", str(output), "--profile", "mini"),
        *("--workers", str(NUM_WORKERS)),
    ]
    say(f"{len(requests)} requests with portraits from {Path(portraits[0]).parent}")
    say("$ python " + " ".join(command[1:]))
    try:
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
    except KeyboardInterrupt:  # the job got the signal too and has ended by now
        return 130
    say("")
    say(f"videos         {output / 'videos'}")
    say(f"results table  {output / 'results.parquet'}")
    say(f"contact sheet  {output / 'contact_sheet.png'}")
    say(f"report         {output / 'report.html'}")
    say(f"demo finished with status {status} in {time.monotonic() - started:.0f} s")
    say(_WEIGHTS_NOTE)
    return status


def _writer() -> Callable[[str], None]:
    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())
