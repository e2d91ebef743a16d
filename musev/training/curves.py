"""Loss curves as a picture, drawn without a plotting library."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PANEL_WIDTH, PANEL_HEIGHT, MARGIN = 420, 240, 44
HIDDEN = ("step", "learning_rate")
_SMOOTHING = 0.85
_FEW = 30
"""Evaluations are few and exact: a panel of so few values is not smoothed."""
_INK, _PALE, _LINE, _GRID = (30, 30, 30), (190, 205, 225), (30, 90, 170), (225, 225, 225)


def draw_curves(history: Sequence[dict[str, float]]) -> bytes:
    """Draw every metric of a run over its steps, raw in pale and smoothed in dark.

    Args:
        history: Entries with ``step`` and some metrics, as the trainer keeps them.

    Returns:
        A PNG file.
    """
    names = dict.fromkeys(name for entry in history for name in entry if name not in HIDDEN)
    series = {
        name: [(e["step"], e[name]) for e in history if math.isfinite(e.get(name, math.nan))]
        for name in names
    }
    series = {name: points for name, points in series.items() if points}
    columns = min(3, max(1, len(series)))
    rows = max(1, math.ceil(len(series) / columns))
    image = Image.new("RGB", (columns * PANEL_WIDTH, rows * PANEL_HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for number, (name, points) in enumerate(series.items()):
        corner = number % columns * PANEL_WIDTH, number // columns * PANEL_HEIGHT
        _draw_panel(draw, name, points, corner)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def smooth(values: Sequence[float], *, weight: float = _SMOOTHING) -> list[float]:
    """Exponential average of a series, corrected for its start.

    Args:
        values: In order.
        weight: Of the past, 0 to 1.

    Returns:
        As many values; a constant series stays what it is.
    """
    total, found = 0.0, []
    for number, value in enumerate(values, start=1):
        total = weight * total + (1 - weight) * value
        found.append(total / (1 - weight**number))
    return found


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    name: str,
    points: Sequence[tuple[float, float]],
    corner: tuple[int, int],
) -> None:
    left, top = corner[0] + MARGIN, corner[1] + MARGIN // 2
    right, bottom = corner[0] + PANEL_WIDTH - 14, corner[1] + PANEL_HEIGHT - MARGIN // 2
    steps, values = [p[0] for p in points], [p[1] for p in points]
    smoothed = smooth(values) if len(values) > _FEW else values
    # The very first values would squeeze all others: the scale fits what comes after.
    shown = (values[len(values) // 50 :] or values) + smoothed[len(values) // 50 :]
    low, high = min(shown), max(shown)
    high = high if high > low else low + max(abs(low), 1e-9) * 0.1
    last = max(steps[-1], 1)

    def place(step: float, value: float) -> tuple[float, float]:
        y = bottom - (value - low) / (high - low) * (bottom - top)
        return left + step / last * (right - left), min(max(y, top), bottom)

    for part in range(5):
        value = low + (high - low) * part / 4
        y = place(0, value)[1]
        draw.line([(left, y), (right, y)], fill=_GRID)
        draw.text((corner[0] + 2, y - 6), f"{value:.3g}", fill=_INK, font=_font())
    for curve, color, width in ((values, _PALE, 1), (smoothed, _LINE, 2)):
        line = [place(step, value) for step, value in zip(steps, curve, strict=True)]
        draw.line(line if len(line) > 1 else line * 2, fill=color, width=width)
    title = f"{name}: {values[-1]:.4g}, smoothed {smoothed[-1]:.4g}"
    draw.text((left, corner[1] + 4), title, fill=_INK, font=_font())
    draw.text((right - 60, bottom + 4), f"step {last:.0f}", fill=_INK, font=_font())


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default()
