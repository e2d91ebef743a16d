"""Curves: a PNG whose panels show what the numbers did."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from musev.training.curves import MARGIN, PANEL_HEIGHT, PANEL_WIDTH, draw_curves, smooth


def _pixels(history: list[dict[str, float]]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_curves(history))).convert("RGB"))


def _line_rows(panel: np.ndarray) -> tuple[float, float]:
    """Mean row of the dark line in the panel's left and right third."""
    dark = (panel == (30, 90, 170)).all(axis=-1)
    third = panel.shape[1] // 3
    return np.argwhere(dark[:, :third])[:, 0].mean(), np.argwhere(dark[:, -third:])[:, 0].mean()


def test_a_falling_loss_falls() -> None:
    history = [{"step": n, "loss": 1.0 - n / 100} for n in range(100)]
    picture = _pixels(history)
    assert picture.shape == (PANEL_HEIGHT, PANEL_WIDTH, 3)
    left, right = _line_rows(picture)
    assert left < PANEL_HEIGHT / 2 < right


def test_every_metric_has_a_panel_and_gaps_are_no_matter() -> None:
    history = [{"step": n, "loss": 1.0, "grad_norm": n, "learning_rate": 1.0} for n in range(5)]
    history += [{"step": 5, "psnr": 20.0}, {"step": 6, "psnr": float("nan")}]
    assert _pixels(history).shape == (PANEL_HEIGHT, 3 * PANEL_WIDTH, 3)
    history += [{"step": 7, "kl": 1.0}]
    assert _pixels(history).shape == (2 * PANEL_HEIGHT, 3 * PANEL_WIDTH, 3)


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": 0.0}], [{"step": 1}]])
def test_short_histories_are_pictures_too(history: list[dict[str, float]]) -> None:
    assert _pixels(history).ndim == 3


def test_few_values_are_shown_as_they_are() -> None:
    """A step from 0 to 1 among few values is a step, not a slow rise."""
    picture = _pixels([{"step": n, "psnr": float(n >= 10)} for n in range(20)])
    left, right = _line_rows(picture)
    assert left - right > 0.75 * (PANEL_HEIGHT - 2 * MARGIN // 2)


def test_smoothing_keeps_constants_and_starts_unbiased() -> None:
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 0.0], weight=0.5) == pytest.approx([1.0, 0.5 * 0.5 / 0.75])
