"""What the judges are worth: their accuracy on drawn truth, and what they say of spoiled clips.

    python benchmarks/judges.py --clips 40              # a minute or two
    python benchmarks/judges.py --clips 400 --seed 900001

Prints the tables of docs/judges.md. Clips are held-out combinations of a seed that nothing was
fitted on.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from musev.config import SamplingConfig, WindowConfig
from musev.quality.attributes import (
    BALD,
    agreement,
    identity,
    read_attributes,
    read_identity,
)
from musev.quality.clip import Expected, judge_clip
from musev.quality.estimate import estimate
from musev.quality.pose import find_people, pck
from musev.quality.seams import last_step_windows, window_borders
from musev.synthetic.clips import Clip, draw_clip
from tests.musev.quality import controls

NUM_FRAMES = 48
TILES = SamplingConfig(windows=WindowConfig(num_frames=12, overlap=0))


def truth_of(clip: Clip) -> dict[str, str]:
    """Words that a judge should read in a clip."""
    a = clip.attributes
    words = {name: getattr(a, name) for name in ("scene", "shirt_color", "action", "skin")}
    words["hair_color"] = BALD if a.hair_style == "bald" else a.hair_color
    return words | ({"trousers_color": a.trousers_color} if a.shows_trousers else {})


def own_accuracy(num_clips: int, seed: int, spoil: Callable[..., np.ndarray]) -> dict[str, list]:
    """Scores of clips of 12 frames against their own truth, and of portraits of other people."""
    scores: dict[str, list[float]] = defaultdict(list)
    portrait_before = None
    for index in range(num_clips):
        clip = draw_clip(seed, index, held_out=True)
        frames_TYXC = spoil(clip.frames_TYXC)
        found = find_people(frames_TYXC)
        scores["pck_0.1"].append(pck(found, clip.points_TJ2, clip.visible_TJ).value)
        readings = read_attributes(frames_TYXC, found)
        for name, word in truth_of(clip).items():
            scores[f"{name}_accuracy"].append(agreement(readings[name], word).value)
        portrait = read_identity(clip.reference_YXC)
        scores["identity"].append(identity(readings, portrait).value)
        if portrait_before is not None:
            scores["identity of another's portrait"].append(
                identity(readings, portrait_before).value
            )
        portrait_before = portrait
    return scores


def control_scores(num_clips: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """Scores by damage and judge, over clips of 48 frames in windows of 12."""
    windows = last_step_windows(NUM_FRAMES, TILES)
    borders = window_borders(windows, NUM_FRAMES)
    damages: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "drawn": lambda frames: frames,
        "grain of 4": controls.grainy,
        "shuffled": controls.shuffled,
        "flickering by 12": controls.flickering,
        "tinted by 30": lambda frames: controls.tinted(frames, 30),
        "blurred by 1": lambda frames: controls.blurred(frames, 1),
        "filmed by a moving camera": controls.panned,
        "the same with a word over it": lambda frames: controls.stamped(controls.panned(frames)),
        "steps of 3 at the borders, grain": lambda frames: controls.stepped(
            controls.grainy(frames, 3), borders, 3
        ),
        "steps of 12 at the borders, grain": lambda frames: controls.stepped(
            controls.grainy(frames, 3), borders, 12
        ),
        "second half frozen": lambda frames: np.concatenate(
            [frames[:24], np.repeat(frames[23:24], 24, axis=0)]
        ),
        "eight frames six times": lambda frames: np.concatenate([frames[:8]] * 6),
        "every fourth frame black": lambda frames: np.stack(
            [frame * (t % 4 > 0) for t, frame in enumerate(frames)]
        ),
    }
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in damages}
    for index in range(num_clips):
        clip = draw_clip(seed, index, held_out=True, num_frames=NUM_FRAMES)
        for name, damage in damages.items():
            scores = judge_clip(damage(clip.frames_TYXC), Expected(windows=windows))
            for judge, score in scores.items():
                if score.known:
                    found[name][judge].append(score.value)
    return found


def print_accuracies(scores: dict[str, dict[str, list]]) -> None:
    """Print a Markdown table, a column a condition."""
    names = list(next(iter(scores.values())))
    print(f"| | {' | '.join(scores)} |\n|{'---|' * (len(scores) + 1)}")
    for name in names:
        cells = []
        for of_condition in scores.values():
            told = estimate(of_condition[name])
            cells.append(
                "–" if told is None else f"{told.value:.3f} ({told.low:.3f} to {told.high:.3f})"
            )
        print(f"| {name} | {' | '.join(cells)} |")


def print_controls(scores: dict[str, dict[str, list[float]]]) -> None:
    """Print a Markdown table: median and middle nine tenths, a line a damage and judge."""
    judges = list(scores["drawn"])
    print("| judge | drawn clips | what is spoiled moves it to |\n|---|---|---|")
    for judge in judges:
        usual = np.array(scores["drawn"][judge])
        low, high = np.percentile(usual, [5, 95])
        moved = []
        for name, of_damage in scores.items():
            values = np.array(of_damage.get(judge, []))
            if name == "drawn" or not len(values):
                continue
            middle = float(np.median(values))
            if not low <= middle <= high:
                moved.append(f"{name} {middle:.3g}")
        print(
            f"| {judge} | {np.median(usual):.3g} ({low:.3g} to {high:.3g}) | {'; '.join(moved)} |"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=24, help="for the accuracies")
    parser.add_argument("--controls", type=int, default=12, help="clips for the spoiled ones")
    parser.add_argument("--seed", type=int, default=900_001)
    given = parser.parse_args()
    conditions = {
        "as drawn": lambda frames: frames,
        "soft and grainy": lambda frames: controls.grainy(controls.blurred(frames, 1.2), 5),
    }
    accuracies = {
        name: own_accuracy(given.clips, given.seed, spoil) for name, spoil in conditions.items()
    }
    print(f"Accuracy on {given.clips} held-out clips of 12 frames, seed {given.seed}:\n")
    print_accuracies(accuracies)
    print(f"\n{given.controls} held-out clips of {NUM_FRAMES} frames, and spoiled:\n")
    print_controls(control_scores(given.controls, given.seed))


if __name__ == "__main__":
    main()
