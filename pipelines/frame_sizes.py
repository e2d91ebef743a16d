"""How large a clip's frames are: from sides and a ratio, and within a limit for an app."""

from __future__ import annotations

from musev.errors import RequestError

MAX_APP_FRAMES = 144
"""Most frames that the original's app takes in a request."""


def scaled_side(side: int, ratio: float, *, multiple: int) -> int:
    """Scale a side and round it down, as the original does (ALGORITHM.md 5.1); it may give 0."""
    return int(side * ratio // multiple * multiple)


def limit_ratio(
    width: int, height: int, ratio: float, *, max_edge: int, image_size: tuple[int, int]
) -> tuple[float, float, float]:
    """Lower a ratio until the longer side keeps within a limit.

    Args:
        width: In pixels; -1 for the image's. Where only one side is -1, the other alone counts.
        height: Likewise.
        ratio: Scale wanted; 0 counts as 1.
        max_edge: Longest side allowed, in pixels.
        image_size: Width and height of the image.

    Returns:
        The ratio, and the scaled width and height before rounding; both -1 where the ratio wanted
        is 1 (the original's app shows no size then).

    Raises:
        RequestError: If no side is a number of pixels.

    Source:
        Upstream scripts/gradio limit_shape; goldens functions/gradio_limits.json.
    """
    if (width, height) == (-1, -1):
        width, height = image_size
    if max(width, height) <= 0:
        raise RequestError(f"width {width} and height {height} are no size. Give pixels, or -1.")
    wanted = ratio or 1.0
    kept = min(max_edge / max(width, height), wanted)
    if wanted == 1:
        return kept, -1.0, -1.0
    return kept, width * kept, height * kept


def limit_length(num_frames: int) -> int:
    """Frames that the original's app makes of a number that was asked for."""
    return min(num_frames, MAX_APP_FRAMES)
