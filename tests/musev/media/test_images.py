"""Pictures: every common kind of file becomes upright RGB; bad files are named in the error."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from musev.errors import MediaError
from musev.media.images import (
    MAX_PIXELS,
    _upstream_crop,
    encode_png,
    fit_image,
    read_image,
)
from tests.goldens import GOLDENS, load_tensors, require_goldens

WIDTH, HEIGHT = 24, 16
CROPS = ((64, 64), (64, 128), (64, 32), (64, 64))  # height, width of the recorded cases


def _picture() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    channels = (columns * 10, rows * 15, (rows + columns) * 6)
    return np.stack(channels, axis=-1).astype(np.uint8)


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _golden_images() -> dict[str, np.ndarray]:
    require_goldens()
    tensors = load_tensors(GOLDENS / "pipeline" / "functions" / "images.safetensors")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_png_comes_back_exactly_from_bytes_and_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(_picture()))
    for source in (path.read_bytes(), path, str(path)):
        image = read_image(source)
        assert image.dtype == np.uint8
        assert image.flags.writeable
        np.testing.assert_array_equal(image, _picture())


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0] = 200
    pixels[0, :, 3] = (0, 255, 128)
    image = read_image(_saved(Image.fromarray(pixels), "PNG"))
    expected = [(255, 255, 255), (200, 0, 0), (227, 127, 127)]
    np.testing.assert_allclose(image[0], expected, atol=1)


def test_palette_with_a_transparent_colour() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.putpixel((1, 0), 1)
    image = read_image(_saved(picture, "PNG", transparency=0))
    np.testing.assert_array_equal(image[0], [(255, 255, 255), (200, 100, 0)])


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    image = read_image(_saved(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 128, 255])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_pixel_mode_becomes_rgb(mode: str, kind: str) -> None:
    if (mode, kind) in {("CMYK", "PNG")}:
        kind = "JPEG"
    colour = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    image = read_image(_saved(colour.convert(mode), kind))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.min() >= 254


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (WIDTH, HEIGHT), (220, 30, 40)).convert("CMYK")
    image = read_image(_saved(red, "JPEG", quality=95))
    np.testing.assert_allclose(image[5, 5], (220, 30, 40), atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(_picture())
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(_saved(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(image, _picture())


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = _saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(data)[0, 0], (255, 0, 0))


def _claiming_png(width: int, height: int) -> bytes:
    """A few bytes whose header claims a picture of this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99)))


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _noise_png() -> bytes:
    return encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


BAD = {
    "empty": (lambda: b"", "empty (0 bytes)"),
    "text": (lambda: b"just some words", "not a picture"),
    "web page": (lambda: b"<!DOCTYPE html><html></html>", "a web page"),
    "video": (lambda: b"\0\0\0\x20ftypisom" + b"\0" * 40, "a video"),
    "lfs pointer": (lambda: b"version https://git-lfs.example/spec/v1\n", "Git LFS pointer"),
    "truncated png": (lambda: _noise_png()[:4000], "damaged or cut short"),
    "truncated jpeg": (
        lambda: _saved(Image.fromarray(_picture()), "JPEG")[:-60],
        "damaged or cut short",
    ),
    "no pixels": (lambda: _claiming_png(8, 8)[:33], "damaged or cut short"),
    "only a header": (lambda: _noise_png()[:20], "damaged or cut short"),
    "flipped byte": (lambda: _flipped(_noise_png(), 3000), "damaged or cut short"),
    "too large": (lambda: _claiming_png(MAX_PIXELS // 1000 + 1, 1000), "too large"),
    "bomb": (lambda: _claiming_png(60_000, 60_000), "too large"),
    "float pixels": (
        lambda: _saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
        "floating-point",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_named_with_what_is_wrong(kind: str, tmp_path: Path) -> None:
    make, phrase = BAD[kind]
    path = tmp_path / "portrait of X.png"
    path.write_bytes(make())
    with pytest.raises(MediaError) as caught:
        read_image(path)
    message = str(caught.value)
    assert "portrait of X.png" in message
    assert phrase in message
    assert message.rstrip().endswith((".", ")"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_any_damage_is_a_media_error_or_a_picture(kind: str) -> None:
    """Decoders stumble over damage in many ways; none of them may escape under its own name."""
    whole = bytearray(_saved(Image.fromarray(_picture()), kind))
    rng = np.random.default_rng(3)
    num_refused = 0
    for _ in range(150):
        data = whole.copy()
        for place in rng.integers(0, len(data), size=rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        try:
            image = read_image(bytes(data[: rng.integers(1, len(data) + 1)]))
        except MediaError:
            num_refused += 1
        else:
            assert image.shape[2] == 3
    assert num_refused > 30


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"gone\.png.*No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(MediaError, match="cannot be opened"):
        read_image(tmp_path)


def test_a_name_for_bytes_reaches_the_error() -> None:
    with pytest.raises(MediaError, match="row 7: the file is empty"):
        read_image(b"", name="row 7")


def test_fit_keeps_a_picture_that_fits() -> None:
    np.testing.assert_array_equal(fit_image(_picture(), width=WIDTH, height=HEIGHT), _picture())


@pytest.mark.parametrize(("width", "height"), [(8, 8), (64, 32), (10, 40)])
def test_fit_cuts_the_middle(width: int, height: int) -> None:
    """The outer bands of one direction are cut; what is left is symmetric about the middle."""
    image = np.zeros((60, 60, 3), np.uint8)
    image[15:45, 15:45] = 255
    fitted = fit_image(image, width=width, height=height)
    assert fitted.shape == (height, width, 3)
    for axis in (0, 1):
        difference = fitted.astype(int) - np.flip(fitted, axis).astype(int)
        assert np.abs(difference).max() <= 1
    share = (fitted > 127).mean()
    aspect = min(width / height, height / width)
    assert share == pytest.approx(min(1.0, 0.5 / aspect) * 0.5, abs=0.12)


def test_exact_upstream_loses_the_last_row_and_column() -> None:
    image = _picture()
    image[-1], image[:, -1] = 255, 255
    ours = fit_image(image, width=WIDTH, height=HEIGHT)
    theirs = fit_image(image, width=WIDTH, height=HEIGHT, exact_upstream=True)
    assert (ours[-1] == 255).all()
    assert (theirs[-1, :12, 0] < 200).all()


def test_fit_refuses_impossible_sizes() -> None:
    with pytest.raises(MediaError, match="0 x 8"):
        fit_image(_picture(), width=0, height=8)
    line = np.zeros((1, 40, 3), np.uint8)
    with pytest.raises(MediaError, match="40 x 1 pixels is too small"):
        fit_image(line, width=8, height=8, exact_upstream=True)
    assert fit_image(line, width=8, height=8).shape == (8, 8, 3)


@pytest.mark.parity
@pytest.mark.parametrize("case", range(len(CROPS)))
def test_crop_resize_equals_the_pipelines(case: int) -> None:
    images = _golden_images()
    height, width = CROPS[case]
    frames_TYXC = images[f"{case}.in"][0].transpose(1, 2, 3, 0)
    fitted = [
        fit_image(frame, width=width, height=height, exact_upstream=True) for frame in frames_TYXC
    ]
    np.testing.assert_array_equal(fitted, images[f"{case}.v2"][0].transpose(1, 2, 3, 0))


@pytest.mark.parity
@pytest.mark.parametrize("case", range(len(CROPS)))
def test_crop_resize_for_detectors_equals_the_pipelines(case: int) -> None:
    images = _golden_images()
    height, width = CROPS[case]
    frame = images[f"{case}.in"][0, :, 0].transpose(1, 2, 0)
    fitted = fit_image(frame, width=width, height=height, resampling="bicubic", exact_upstream=True)
    np.testing.assert_array_equal(fitted, images[f"{case}.pil_default"])


@pytest.mark.parity
@pytest.mark.parametrize("case", ["rgba", "gray"])
def test_reading_equals_the_pipelines(case: str) -> None:
    images = _golden_images()
    image = read_image(_saved(Image.fromarray(images[f"{case}.in"]), "PNG"))
    np.testing.assert_array_equal(image, images[f"{case}.read5d"][0, :, 0].transpose(1, 2, 0))


@pytest.mark.parametrize("size", [(71, 106), (300, 200), (30, 31)])
def test_frames_of_a_video_are_resized_as_torch_does(size: tuple[int, int]) -> None:
    """The original interpolates uint8 tensors; in a few places its fixed point is one level off."""
    import torch

    rows, columns = size
    frame = np.random.default_rng(0).integers(0, 256, (rows + 1, columns + 1, 3), dtype=np.uint8)
    height, width = 64, round(64 * columns / rows)
    left, top, right, bottom = _upstream_crop(columns + 1, rows + 1, width / height)
    cut = torch.from_numpy(frame[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(cut, size=(height, width), mode="bilinear")
    ours = fit_image(frame, width=width, height=height, resampling="bilinear", exact_upstream=True)
    difference = np.abs(ours.astype(int) - theirs[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 1
    assert difference.mean() < 0.01
