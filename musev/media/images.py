"""Picture files to arrays of one known kind (uint8 RGB), and arrays to the size a clip needs.

Axes here: Y X pixel rows and columns, C channel (red, green, blue).
"""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from musev.errors import MediaError

MAX_PIXELS = 89_478_485
"""Larger pictures are refused before they are decoded: a small file can hold a huge picture.

Pillow's own warning limit (``Image.MAX_IMAGE_PIXELS``, a quarter of a gigabyte as RGB).
"""

_RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_PICTURE_MARKS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")
_SIGNATURES = (
    (4, b"ftyp", "a video or HEIC file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (0, b"%PDF", "a PDF document"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML or SVG file"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the picture itself"),
)


def read_image(source: bytes | str | os.PathLike[str], *, name: str | None = None) -> np.ndarray:
    """Read a picture as RGB: turned upright, transparency laid over white, 8 bits a channel.

    Of an animation the first frame is read. Sixteen-bit grey is scaled, not clipped.

    Args:
        source: The file's bytes, or its path.
        name: What to call the picture in errors; the path by default.

    Returns:
        ``image_YXC``: uint8, three channels, contiguous.

    Raises:
        MediaError: If the file is missing, empty, not a picture, damaged, cut short, larger than
            :data:`MAX_PIXELS`, or of a pixel type without a known range (floating point).

    Source:
        Upstream composites on white as well (``read_image_as_5d``; ALGORITHM.md 5.2).
    """
    label = name or ("picture" if isinstance(source, bytes) else os.fspath(source))
    data = source if isinstance(source, bytes) else _read_bytes(Path(source), label)
    if not data:
        raise MediaError(f"{label}: the file is empty (0 bytes). Upload or copy it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        if data.startswith(_PICTURE_MARKS):
            raise MediaError(_damaged(label, ValueError("unusable header"))) from error
        raise MediaError(
            f"{label}: not a picture that can be read; it looks like {_describe(data)}. "
            "Give a PNG, JPEG, WebP, TIFF, BMP or GIF file."
        ) from error
    except Image.DecompressionBombError as error:
        raise MediaError(_too_large(label, "more than twice as many pixels")) from error
    except Exception as error:  # decoders raise whatever a damaged header makes them stumble on
        raise MediaError(_damaged(label, error)) from error
    with picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise MediaError(_too_large(label, f"{picture.width} x {picture.height} pixels"))
        try:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return np.array(_to_rgb(upright, label))
        except MediaError:
            raise
        except Exception as error:
            raise MediaError(_damaged(label, error)) from error


def fit_image(
    image: np.ndarray,
    *,
    width: int,
    height: int,
    resampling: Literal["lanczos", "bicubic", "bilinear"] = "lanczos",
    exact_upstream: bool = False,
) -> np.ndarray:
    """Cut the middle of a picture to the wanted aspect, then resize it.

    Args:
        image: ``image_YXC``, uint8.
        width: Wanted width in pixels.
        height: Wanted height in pixels.
        resampling: Upstream uses ``lanczos`` for pictures that become latents, ``bicubic`` for
            pictures that go to detectors and CLIP, and ``bilinear`` for the frames of a video: four
            pixels are mixed however much smaller the frame becomes.
        exact_upstream: Cut exactly where upstream does. It rounds the borders to whole pixels and
            always loses the last row and the last column, even of a picture that already fits.

    Returns:
        ``image_YXC``: uint8, ``height`` by ``width``.

    Raises:
        MediaError: If the wanted size is not positive, or nothing would be left of the picture.

    Source:
        ALGORITHM.md 5.3 for ``exact_upstream``.
    """
    if width < 1 or height < 1:
        raise MediaError(f"a picture cannot be resized to {width} x {height} pixels")
    rows, columns = image.shape[:2]
    if not exact_upstream:
        box = _centre_crop(columns, rows, width / height)
        return _resize(image, width, height, resampling, box=box)
    left, top, right, bottom = _upstream_crop(columns, rows, width / height)
    if right <= left or bottom <= top:
        raise MediaError(
            f"a picture of {columns} x {rows} pixels is too small or too narrow to cut to "
            f"{width} x {height}; give a larger one"
        )
    # Cut first: given a box, Pillow's filter would also look at pixels just outside of it.
    cut = np.ascontiguousarray(image[top:bottom, left:right])
    if resampling == "bilinear":
        return _mix_four(cut, width, height)
    return _resize(cut, width, height, resampling)


def encode_png(image: np.ndarray) -> bytes:
    """Encode ``image_YXC`` (uint8 RGB) as the bytes of a PNG file; equal pixels, equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _resize(
    image: np.ndarray,
    width: int,
    height: int,
    resampling: str,
    *,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    picture = Image.fromarray(image)
    return np.array(picture.resize((width, height), _RESAMPLING[resampling], box=box))


def _mix_four(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize as the original does, in torch's fixed point: four pixels are mixed at any size.

    Pillow's filter of that name would widen where it shrinks.
    """
    import torch  # only where such frames are wanted: this module is read by light processes

    image_1CYX = torch.from_numpy(image).permute(2, 0, 1)[None]
    mixed = torch.nn.functional.interpolate(image_1CYX, size=(height, width), mode="bilinear")
    return np.ascontiguousarray(mixed[0].permute(1, 2, 0).numpy())


def _centre_crop(columns: int, rows: int, aspect: float) -> tuple[float, float, float, float]:
    """Largest centred box of the aspect; borders may lie between pixels."""
    wide = min(columns, rows * aspect)
    high = min(rows, columns / aspect)
    left, top = (columns - wide) / 2, (rows - high) / 2
    return left, top, min(left + wide, columns), min(top + high, rows)


def _upstream_crop(columns: int, rows: int, aspect: float) -> tuple[int, int, int, int]:
    if columns / rows >= aspect:
        spare = (columns - rows * aspect) / 2
        box = math.ceil(spare), 0, math.ceil(columns - spare), rows
    else:
        spare = (rows - columns / aspect) / 2
        box = 0, math.ceil(spare), columns, math.ceil(rows - spare)
    left, top, right, bottom = box
    return left, top, min(right, columns - 1), min(bottom, rows - 1)


def _read_bytes(path: Path, label: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MediaError(f"{label}: cannot be opened ({reason}). Check the path.") from error


def _to_rgb(picture: Image.Image, label: str) -> Image.Image:
    if picture.mode == "F":
        raise MediaError(
            f"{label}: pixels are floating-point numbers without a known range. "
            "Save it with 8 bits a channel, for example as PNG."
        )
    if picture.mode.startswith("I"):
        # Pillow clips wide integers to 255 when it converts them; these are sixteen-bit grey.
        grey = np.asarray(picture).astype(np.int64)
        return Image.fromarray(np.clip((grey + 128) // 257, 0, 255).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _describe(data: bytes) -> str:
    start = data[:64].lstrip()
    for offset, mark, kind in _SIGNATURES:
        if data[offset : offset + len(mark)] == mark or (offset == 0 and start.startswith(mark)):
            return kind
    return f"something else (its first bytes are {data[:8]!r})"


def _damaged(label: str, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return (
        f"{label}: the picture is damaged or cut short ({reason}). "
        "Copy it again from its source, or open and save it in a picture editor."
    )


def _too_large(label: str, size: str) -> str:
    return (
        f"{label}: the picture is too large ({size}; the limit is {MAX_PIXELS:,} pixels). "
        "Scale it down first."
    )
