"""Sample pictures of a run: a PNG of the size that its stage and settings say."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs._samples import draw_samples
from musev.settings import replace_settings
from musev.synthetic.clips import draw_clip
from musev.training.runs import RunConfig, prepare_run
from musev.training.stages import get_stage
from tests.musev.training.small import SIZE_PX, save_small_vae, small_run


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_vae_shows_the_truth_and_what_it_made_of_it(tmp_path: Path) -> None:
    stage = replace_settings(get_stage("mini-vae"), {"size_px": str(SIZE_PX)})
    prepared = prepare_run(RunConfig(stage=stage, out=str(tmp_path)))
    picture = _pixels(draw_samples(prepared, 2, SIZE_PX))
    assert picture.shape == (2 * SIZE_PX, 2 * SIZE_PX, 3)
    truth = draw_clip(7, 1, held_out=True, num_frames=1, height=SIZE_PX, width=SIZE_PX)
    assert np.array_equal(picture[:SIZE_PX, SIZE_PX:], truth.frames_TYXC[0])
    assert not np.array_equal(picture[SIZE_PX:], picture[:SIZE_PX])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("text-to-image", 2), ("motion", 3)])
def test_networks_show_what_they_generate(name: str, rows: int, tmp_path: Path) -> None:
    """Under the truth: frames from text; of clips also what follows a given first frame."""
    run = small_run(name, tmp_path, save_small_vae(tmp_path))
    picture = _pixels(draw_samples(prepare_run(run), 2, SIZE_PX))
    assert picture.shape == (rows * SIZE_PX, 2 * SIZE_PX, 3)
    assert picture[SIZE_PX:].std() > 0
