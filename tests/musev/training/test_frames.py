"""Pictures for the VAE: the same number gives the same batch, and pixels keep their values."""

from __future__ import annotations

import numpy as np
import torch

from musev.synthetic.clips import draw_clip
from musev.training.frames import frame_batch, to_frames, to_pixels


def _batch(number: int, **changes: int | bool) -> dict[str, torch.Tensor]:
    return frame_batch(5, number, **({"num_images": 3, "size_px": 32} | changes))


def test_a_batch_is_a_function_of_its_number() -> None:
    first, again, other = _batch(4), _batch(4), _batch(5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixels"], other["pixels"])


def test_large_batches_are_small_ones_in_a_row() -> None:
    whole = _batch(1, num_images=4)["pixels"]
    parts = [_batch(n, num_images=2)["pixels"] for n in (2, 3)]
    assert torch.equal(torch.cat(parts), whole)


def test_shapes_and_ranges() -> None:
    batch = _batch(0, crop_px=16)
    assert batch["pixels"].shape == (3, 3, 16, 16)
    assert batch["mask"].shape == (3, 1, 16, 16)
    assert -1 <= float(batch["pixels"].min()) < float(batch["pixels"].max()) <= 1
    assert 0 <= float(batch["mask"].min()) < float(batch["mask"].max()) <= 1


def test_crops_lie_inside_the_picture_and_mostly_on_the_person() -> None:
    share = _batch(0, num_images=24, crop_px=8)["mask"].mean()
    assert share > 1.3 * _batch(0, num_images=24)["mask"].mean()


def test_held_out_pictures_are_plain_first_frames() -> None:
    found = to_frames(_batch(0, held_out=True)["pixels"])
    for index in range(3):
        clip = draw_clip(5, index, held_out=True, height=32, width=32, num_frames=1)
        assert np.array_equal(found[index], clip.frames_TYXC[0])


def test_pixels_come_back_unchanged() -> None:
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_frames(to_pixels(frames)), frames)
