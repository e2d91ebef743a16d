"""Render a small manifest of people end to end, as ``make demo`` does; safe to repeat.

The people are drawn by :mod:`musev.synthetic`, in combinations of clothes, scene and action that no
training has seen: their pictures, and videos of their skeletons that other rows follow. Portraits
come from ``../shared/media`` where that folder is there, and are drawn otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs._console import run_command
from musev.config import EncoderConfig, Profile
from musev.registry import get_profile
from pipelines.manifest import write_manifest

ROOT = Path(__file__).resolve().parents[1]
PORTRAITS = ROOT.parent / "shared" / "media"
OUTPUT = Path("out") / "demo"
MEDIA = "media"
PROFILE = "mini"
NUM_WORKERS = 2
LONG_FRAMES = 120
_DRAWN_PORTRAITS = 4
_CAST_SEED = 2024
_CAST = {"waving": 21, "turning": 4, "clapping": 5, "raising": 10, "kicking": 9, "bowing": 22}
_CAST |= {"greeting": 0, "dancing": 11}
# A skeleton's thin lines lose their colours where a video keeps one colour for four pixels.
_ENLARGED = 2
_RANDOM_WEIGHTS_NOTE = (
    f"Note: the networks of profile {PROFILE!r} hold small random weights; nothing was trained.\n"
    "      The videos show that every stage runs, not what MuseV can draw."
)


@dataclass(frozen=True)
class Actor:
    """A drawn person: paths relative to the manifest."""

    caption: str
    image: str
    """The first frame."""
    reference: str
    """The same person in another pose, on a plain backdrop."""
    poses: str
    """The skeleton of every frame, as a video."""


def build_requests(cast: dict[str, Actor], portrait: str) -> list[dict[str, Any]]:
    """Make the demo's manifest rows, one or two of every kind of request.

    Args:
        cast: From :func:`draw_cast`.
        portrait: Path of a portrait.

    Returns:
        Ten rows under manifest column names.
    """

    def follow(name: str) -> dict[str, Any]:
        return {"video": cast[name].poses, "video_is_control": True}

    def told(name: str) -> dict[str, Any]:
        return {"prompt": cast[name].caption}

    def shown(name: str) -> dict[str, Any]:
        return told(name) | {"condition_image": cast[name].image}

    greeting = cast["greeting"].reference
    rows: dict[str, dict[str, Any]] = {
        "text": told("waving"),
        "text-in-a-room": told("turning"),
        "picture": shown("clapping"),
        "portrait": {
            "condition_image": portrait,
            "prompt": "portrait of a person who is turning the head",
        },
        "same-person-elsewhere": {
            "reference_image": greeting,
            "ip_adapter_image": greeting,
            "prompt": "a person is walking on a beach",
        },
        "picture-and-poses": shown("raising") | follow("raising"),
        "kick": shown("kicking") | follow("kicking"),
        "text-and-poses": told("bowing") | follow("bowing"),
        "same-person-other-poses": {
            "reference_image": greeting,
            "ip_adapter_image": greeting,
            "prompt": "a person in a meadow",
            **follow("raising"),
        },
        "long": shown("dancing") | follow("dancing") | {"num_frames": LONG_FRAMES},
    }
    return [
        {"request_id": f"{number:02d}-{kind}", "seed": number, **row}
        for number, (kind, row) in enumerate(rows.items(), start=1)
    ]


def draw_cast(folder: Path, profile: Profile) -> dict[str, Actor]:
    """Draw the people of the demo and their skeletons.

    Args:
        folder: Of the manifest; files go into a folder below it.
        profile: Gives size, length and frame rate.

    Returns:
        The people by what they do.
    """
    import numpy as np

    from musev.media import encode_png, write_segment
    from musev.synthetic.clips import draw_clip

    (folder / MEDIA).mkdir(parents=True, exist_ok=True)
    cast = {}
    for name, index in _CAST.items():
        clip = draw_clip(
            _CAST_SEED,
            index,
            held_out=True,
            height=profile.height,
            width=profile.width,
            num_frames=LONG_FRAMES if name == "dancing" else profile.num_frames,
            fps=profile.fps,
        )
        actor = Actor(
            caption=clip.caption,
            image=f"{MEDIA}/{name}.png",
            reference=f"{MEDIA}/{name}-reference.png",
            poses=f"{MEDIA}/{name}-poses.mp4",
        )
        (folder / actor.image).write_bytes(encode_png(clip.frames_TYXC[0]))
        (folder / actor.reference).write_bytes(encode_png(clip.reference_YXC))
        write_segment(
            folder / actor.poses,
            (
                np.kron(frame, np.ones((_ENLARGED, _ENLARGED, 1), np.uint8))
                for frame in clip.control_TYXC
            ),
            fps=profile.fps,
            encoder=EncoderConfig(crf=8),
        )
        cast[name] = actor
    return cast


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
    """Build the manifest, run the job on it as a user would, and say where everything is.

    Rows of words, or of words and a portrait, are given poses first; the others bring what they
    follow, or begin with a picture.

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
    profile = get_profile(PROFILE)
    portraits = find_portraits(options.portraits, drawn_into=output / "portraits")
    manifest = output / "manifest.parquet"
    requests = build_requests(draw_cast(output, profile), portraits[0])
    write_manifest(requests, str(manifest))
    say(f"{len(requests)} requests; drawn people in {output / MEDIA}, portrait {portraits[0]}")
    command = [
        *(sys.executable, "-m", "jobs.text_to_video", "--text-to-pose"),
        *("--manifest", str(manifest), "--output", str(output)),
        *("--profile", PROFILE, "--workers", str(NUM_WORKERS)),
    ]
    say("$ python " + " ".join(command[1:]))
    status = run_command(command, ROOT)
    say("")
    say(f"videos         {output / 'videos'}")
    say(f"results table  {output / 'results.parquet'}")
    say(f"contact sheet  {output / 'contact_sheet.png'}")
    say(f"report         {output / 'report.html'}")
    say(f"demo finished with status {status} in {time.monotonic() - started:.0f} s")
    if profile.weights.random_seed is not None:
        say(_RANDOM_WEIGHTS_NOTE)
    return status


def _writer() -> Callable[[str], None]:
    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())
