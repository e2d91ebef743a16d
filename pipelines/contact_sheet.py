"""Draw one picture of a whole run: a card per request, with frames of its video or its failure.

Plain drawing with Pillow; knows neither storage nor Ray.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NUM_FRAMES = 4
MAX_CARDS = 64

_MARGIN_PX, _GAP_PX, _PAD_PX = 32, 20, 14
_THUMB_PX, _THUMB_GAP_PX, _MAX_THUMB_HEIGHT_PX = 148, 6, 232
_STRIP_PX = NUM_FRAMES * _THUMB_PX + (NUM_FRAMES - 1) * _THUMB_GAP_PX
_CARD_PX = _STRIP_PX + 2 * _PAD_PX
_COLUMNS = 2
_HEADER_PX = 74
_TITLE, _NAME, _TEXT, _SMALL = 26, 16, 14, 12
_PROMPT_LINES, _REASON_LINES = 2, 5

_PAPER, _CARD, _LINE, _WELL = "#f3f2ef", "#ffffff", "#dcdad4", "#efeeea"
_INK, _SOFT = "#1d1d1b", "#6d6b66"
_PANELS = {  # status: (panel, strong colour)
    "failed": ("#fdecea", "#b3261e"),
    "quarantined": ("#fdf1dc", "#9a5b00"),
    "committed": ("#ecebe7", "#6d6b66"),
}
# Pillow's own font knows ASCII and these; other text is drawn with whichever font is installed.
_OWN_SIGNS = "·…«»‘’“”"
_LETTER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf")
_IDEOGRAM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
)
_FIRST_IDEOGRAM = "\u2e80"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the sheet shows of one request.

    Attributes:
        name: Request id.
        prompt: Prompt, shortened to fit.
        facts: Small print, for example size and length.
        status: ``committed``, ``failed`` or ``quarantined``.
        source: Stage and class of the error.
        reason: Why there are no frames.
        frames: Pairs of frame number and ``image_YXC`` uint8; at most :data:`NUM_FRAMES`.
    """

    name: str
    prompt: str
    facts: str
    status: str
    source: str = ""
    reason: str = ""
    frames: Sequence[tuple[int, np.ndarray]] = field(default_factory=tuple)


def draw_contact_sheet(title: str, subtitle: str, cards: Sequence[Card]) -> Image.Image:
    """Draw the sheet: a heading and two columns of cards; each row as high as its highest card.

    Args:
        title: Heading.
        subtitle: Small line below it.
        cards: Requests in order; those after the first :data:`MAX_CARDS` are left out.

    Returns:
        An RGB picture.
    """
    shown = cards[:MAX_CARDS]
    rows = [shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)]
    strips = [max(map(_strip_height, row)) for row in rows]
    heights = [strip + _caption_height() + 2 * _PAD_PX for strip in strips]
    width = 2 * _MARGIN_PX + _COLUMNS * _CARD_PX + (_COLUMNS - 1) * _GAP_PX
    height = 2 * _MARGIN_PX + _HEADER_PX + sum(heights) + _GAP_PX * max(len(rows) - 1, 0)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    inner_px = width - 2 * _MARGIN_PX
    _line(draw, (_MARGIN_PX, _MARGIN_PX), title, _TITLE, _INK, inner_px)
    _line(draw, (_MARGIN_PX, _MARGIN_PX + 38), subtitle, _TEXT, _SOFT, inner_px)
    top = _MARGIN_PX + _HEADER_PX
    for row, strip, card_height in zip(rows, strips, heights, strict=True):
        for column, card in enumerate(row):
            left = _MARGIN_PX + column * (_CARD_PX + _GAP_PX)
            box = (left, top, left + _CARD_PX, top + card_height)
            draw.rounded_rectangle(box, radius=10, fill=_CARD, outline=_LINE)
            _draw_card(sheet, draw, card, (left + _PAD_PX, top + _PAD_PX), strip)
        top += card_height + _GAP_PX
    return sheet


def pick_frames(num_frames: int, count: int = NUM_FRAMES) -> list[int]:
    """Choose evenly spaced frame numbers, first and last included; each number once."""
    if num_frames <= count:
        return list(range(num_frames))
    return [round(index * (num_frames - 1) / (count - 1)) for index in range(count)]


def wrap_text(text: str, *, size: int, width_px: int, max_lines: int) -> list[str]:
    """Break text into lines that fit; the last one ends in an ellipsis if anything was left out.

    Args:
        text: Any text; white space counts as one space.
        size: Font size.
        width_px: Width of a line.
        max_lines: Number of lines.

    Returns:
        Lines, each at most ``width_px`` wide.
    """
    rest = " ".join(text.split())
    font = _font(size, rest)
    lines: list[str] = []
    while rest and len(lines) < max_lines:
        if font.getlength(rest) <= width_px:
            return [*lines, rest]
        fits = _num_fitting(font, rest, width_px)
        if len(lines) == max_lines - 1:
            fits = _num_fitting(font, rest, width_px - font.getlength("…"))
            return [*lines, rest[:fits].rstrip() + "…"]
        space = rest.rfind(" ", 0, fits + 1)
        cut = space if space > 0 else fits
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return lines


def describe(row: Mapping[str, Any]) -> str:
    """Say a request's size, length and seed in a few words; what is unknown is left out."""
    facts = []
    if row.get("width") and row.get("height"):
        facts.append(f"{row['width']} x {row['height']}")
    if row.get("num_frames"):
        facts.append(f"{row['num_frames']} frames")
    if row.get("fps"):
        facts.append(f"{row['fps']:g} fps")
    if row.get("seed") is not None:
        facts.append(f"seed {row['seed']}")
    return " · ".join(facts)


def _draw_card(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    card: Card,
    corner: tuple[int, int],
    strip_height: int,
) -> None:
    left, top = corner
    if not card.frames:
        _draw_panel(draw, card, (left, top, left + _STRIP_PX, top + strip_height))
    for index, (number, image) in enumerate(card.frames):
        well = left + index * (_THUMB_PX + _THUMB_GAP_PX)
        draw.rectangle((well, top, well + _THUMB_PX - 1, top + strip_height - 1), fill=_WELL)
        thumb = _thumb(image)
        at = (well + (_THUMB_PX - thumb.width) // 2, top + (strip_height - thumb.height) // 2)
        sheet.paste(thumb, at)
        _draw_number(draw, (at[0] + 6, at[1] + 6), number)
    top += strip_height + 12
    facts_px = round(_font(_SMALL, card.facts).getlength(card.facts))
    _line(draw, (left + _STRIP_PX - facts_px, top + 3), card.facts, _SMALL, _SOFT, facts_px + 1)
    _line(draw, (left, top), card.name, _NAME, _INK, _STRIP_PX - facts_px - 16)
    top += 24
    for text in wrap_text(card.prompt, size=_TEXT, width_px=_STRIP_PX, max_lines=_PROMPT_LINES):
        draw.text((left, top), text, fill=_INK, font=_font(_TEXT, card.prompt))
        top += 19


def _draw_panel(draw: ImageDraw.ImageDraw, card: Card, box: tuple[int, int, int, int]) -> None:
    tint, strong = _PANELS.get(card.status, _PANELS["failed"])
    draw.rounded_rectangle(box, radius=6, fill=tint)
    draw.rounded_rectangle((box[0], box[1], box[0] + 6, box[3]), radius=3, fill=strong)
    status = "no preview" if card.status == "committed" else card.status
    label = "  ·  ".join(part for part in (status.upper(), card.source) if part)
    left, top = box[0] + 24, box[1] + 16
    draw.text((left, top), label, fill=strong, font=_font(_TEXT, label))
    width_px = box[2] - left - 18
    lines = wrap_text(card.reason, size=_TEXT, width_px=width_px, max_lines=_REASON_LINES)
    for index, text in enumerate(lines):
        at = (left, top + 26 + 19 * index)
        draw.text(at, text, fill=_INK, font=_font(_TEXT, card.reason))


def _draw_number(draw: ImageDraw.ImageDraw, at: tuple[int, int], number: int) -> None:
    text = str(number)
    font = _font(_SMALL, text)
    box = (at[0], at[1], at[0] + int(font.getlength(text)) + 10, at[1] + 17)
    draw.rounded_rectangle(box, radius=4, fill="#1d1d1b")
    draw.text((box[0] + 5, box[1] + 1), text, fill="#ffffff", font=font)


def _line(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width_px: int
) -> None:
    for line in wrap_text(text, size=size, width_px=width_px, max_lines=1):
        draw.text(at, line, fill=colour, font=_font(size, text))


def _thumb(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image)
    scale = min(_THUMB_PX / picture.width, _MAX_THUMB_HEIGHT_PX / picture.height)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _strip_height(card: Card) -> int:
    if not card.frames:
        return _THUMB_PX
    return max(_thumb(image).height for _, image in card.frames)


def _caption_height() -> int:
    return 12 + 24 + 19 * _PROMPT_LINES


def _num_fitting(font: Any, text: str, width_px: float) -> int:
    """Most characters from the start that fit; at least one, so that breaking always ends."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width_px:
            low = middle
        else:
            high = middle - 1
    return low


def _font(size: int, text: str) -> Any:
    if all(letter.isascii() or letter in _OWN_SIGNS for letter in text):
        return _load_font(size, ())
    if max(text) >= _FIRST_IDEOGRAM:
        return _load_font(size, _IDEOGRAM_FONTS + _LETTER_FONTS)
    return _load_font(size, _LETTER_FONTS + _IDEOGRAM_FONTS)


@functools.cache
def _load_font(size: int, names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
