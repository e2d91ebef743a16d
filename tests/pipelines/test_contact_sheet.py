from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from pipelines import contact_sheet
from pipelines.contact_sheet import (
    Card,
    describe,
    draw_contact_sheet,
    pick_frames,
    wrap_text,
)

COLOURS = [(200, 30, 30), (30, 160, 60), (30, 60, 200), (200, 30, 200)]
RED = COLOURS[0]


def make_card(colour: tuple[int, int, int], width: int = 64, height: int = 64) -> Card:
    image_YXC = np.full((height, width, 3), colour, dtype=np.uint8)
    frames = [(number, image_YXC) for number in (0, 4, 8, 12)]
    return Card(name="a", prompt="b " * 400, facts="c", status="committed", frames=frames)


def box_of(sheet_YXC: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of everything drawn in a colour."""
    rows, columns = np.nonzero((sheet_YXC == colour).all(axis=-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize(
    ("num_frames", "picked"),
    [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (13, [0, 4, 8, 12]), (1000, [0, 333, 666, 999])],
)
def test_frames_are_picked_evenly_with_both_ends(num_frames: int, picked: list[int]) -> None:
    assert pick_frames(num_frames) == picked


SIZES = [(64, 64), (320, 64), (64, 320), (2, 2), (1024, 1000)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_cards_have_room_of_their_own(width: int, height: int) -> None:
    cards = [make_card(RED, width, height), *map(make_card, COLOURS[1:])]
    sheet_YXC = np.asarray(draw_contact_sheet("t", "s", cards))
    boxes = [box_of(sheet_YXC, colour) for colour in COLOURS]
    (left, top, right, bottom), beside, below, _ = boxes
    assert right + 20 < beside[0]
    assert bottom + 60 < below[1]  # the caption stands between
    assert beside[3] + 60 < below[1]
    assert all(0 < box[0] and box[2] < sheet_YXC.shape[1] for box in boxes)
    one_px = (right - left + 1) / 4
    assert bottom - top + 1 <= one_px * height / width * 1.1 + 2  # shapes are kept


def test_a_failed_card_shows_its_colour_and_no_frames() -> None:
    card = Card(name="bad", prompt="", facts="", status="failed", reason="no such picture")
    sheet_YXC = np.asarray(draw_contact_sheet("t", "s", [card]))
    assert (sheet_YXC == (0xFD, 0xEC, 0xEA)).all(axis=-1).sum() > 10_000
    quiet = Card(name="bad", prompt="", facts="", status="failed")
    assert (np.asarray(draw_contact_sheet("t", "s", [quiet])) != sheet_YXC).any()


def test_huge_runs_stop_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "MAX_CARDS", 3)
    small = draw_contact_sheet("t", "s", [make_card(RED)] * 3)
    assert draw_contact_sheet("t", "s", [make_card(RED)] * 5000).size == small.size


def test_an_empty_run_still_has_a_sheet() -> None:
    assert draw_contact_sheet("nothing", "to show", []).width > 0


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "many words " * 40,
        "x" * 500,
        "ünïcode wörds " * 20,
        "日本語の説明" * 40,
        " \n\t ",
        "",
    ],
)
def test_wrapped_lines_fit(text: str) -> None:
    lines = wrap_text(text, size=14, width_px=200, max_lines=3)
    assert len(lines) <= 3
    joined = " ".join(text.split())
    if text.isascii():
        font = ImageFont.load_default(14)
        assert all(font.getlength(line) <= 200 for line in lines)
    if len(lines) < 3:
        assert "".join(lines).replace(" ", "") == joined.replace(" ", "")
    else:
        assert lines[-1].endswith("…")
        assert joined.replace(" ", "").startswith("".join(lines)[:-1].replace(" ", ""))


def test_wrapping_breaks_between_words() -> None:
    lines = wrap_text("alpha beta gamma delta", size=14, width_px=80, max_lines=9)
    assert len(lines) > 1
    assert " ".join(lines) == "alpha beta gamma delta"


def test_unknown_facts_are_left_out() -> None:
    assert describe({"width": 64, "height": 32, "num_frames": 13, "fps": 8.0, "seed": 0}) == (
        "64 x 32 · 13 frames · 8 fps · seed 0"
    )
    assert describe({"width": None, "fps": None}) == ""
