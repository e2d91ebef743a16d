"""controlnet_aux's networks load from files on disk, run, repeat, and refuse wrong files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from musev.control.aux_library import import_controlnet_aux
from musev.control.control_names import WEIGHTS
from musev.control.network_maps import open_network, paint_segments
from musev.errors import WeightsError
from tests.musev.control.random_weights import write_weights

SMALL = ("pidinet", "lineart")
LARGE = ("lineart_anime", "midas", "normal_bae", "zoe", "leres")


def frame(size: tuple[int, int] = (64, 128)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = np.stack([rows, columns, rows + columns], axis=2) * 0.2
    return (127 + 100 * np.sin(waves)).astype(np.uint8)


def open_random(detector: str, folder: Path, **options: bool):
    files = write_weights(detector, folder)
    return open_network(detector, files, options=options, seed=0, device="cpu")


def check_runs(find) -> None:
    """Same size, something to see, and the same again, with another frame in between."""
    image = frame()
    first = find(image)
    assert first.shape[:2] == image.shape[:2]
    assert first.dtype == np.uint8
    assert first.std() > 1
    assert (find(255 - image) != first).any()
    np.testing.assert_array_equal(find(image), first)


@pytest.mark.parametrize("detector", SMALL)
def test_a_small_network_loads_and_runs(detector: str, tmp_path: Path) -> None:
    check_runs(open_random(detector, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("detector", LARGE)
def test_a_large_network_loads_and_runs(detector: str, tmp_path: Path) -> None:
    check_runs(open_random(detector, tmp_path))


@pytest.mark.slow
def test_mobile_sam_segments(tmp_path: Path) -> None:
    find = open_random("mobile_sam", tmp_path)
    # One prompt in place of 1024, and random scores pass: this is about loading and running.
    find.generator.point_grids = [np.array([[0.5, 0.5]])]
    find.generator.pred_iou_thresh = -1e9
    find.generator.stability_score_thresh = 0.0
    image = frame()
    first = find(image)
    assert first.shape == image.shape
    np.testing.assert_array_equal(find(image), first)


def test_scribbles_are_black_and_white_and_thinner(tmp_path: Path) -> None:
    files = write_weights("hed", tmp_path)
    # Large weights: random edges must cross the scribble's threshold somewhere.
    state = torch.load(files["ControlNetHED.pth"])
    state = {k: v * 30 if "projection.weight" in k else v for k, v in state.items()}
    torch.save(state, files["ControlNetHED.pth"])
    soft, scribble = (
        open_network("hed", files, options=options, seed=0, device="cpu")(frame())
        for options in ({}, {"scribble": True})
    )
    assert len(np.unique(soft)) > 20
    assert set(np.unique(scribble)) == {0, 255}


def test_coarse_lines_come_from_the_second_file(tmp_path: Path) -> None:
    files = write_weights("lineart", tmp_path)
    library = import_controlnet_aux()
    theirs = library.LineartDetector.from_pretrained(str(tmp_path))
    maps = {
        coarse: open_network("lineart", files, options={"coarse": coarse}, seed=0, device="cpu")
        for coarse in (True, False)
    }
    sizes = {"detect_resolution": 64, "image_resolution": 64, "output_type": "np"}
    for coarse, find in maps.items():
        expected = theirs(frame(), coarse=coarse, **sizes)
        np.testing.assert_array_equal(find(frame()), expected)
    assert (maps[True](frame()) != maps[False](frame())).any()


def test_files_in_several_folders_are_brought_together(tmp_path: Path) -> None:
    files = write_weights("lineart", tmp_path)
    apart = {}
    for name, path in files.items():
        (tmp_path / path.stem).mkdir()
        apart[name] = path.rename(tmp_path / path.stem / name)
    for _ in range(2):
        check_runs(open_network("lineart", apart, options={}, seed=0, device="cpu"))


def test_a_file_saved_on_a_gpu_loads_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        files = write_weights("pidinet", tmp_path)
    load = torch.load
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(files["table5_pidinet.pth"])
    check_runs(open_network("pidinet", files, options={}, seed=0, device="cpu"))
    assert torch.load is load


@pytest.mark.parametrize("content", [b"", b"not a network", None])
def test_a_wrong_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    import_controlnet_aux()
    path = tmp_path / "ControlNetHED.pth"
    if content is None:
        torch.save({"other.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{path} did not load as hed"):
        open_network("hed", {path.name: path}, options={}, seed=0, device="cpu")


@pytest.mark.slow
def test_zoe_with_a_part_missing_is_refused_not_filled_with_random_numbers(tmp_path: Path) -> None:
    path = write_weights("zoe", tmp_path)["ZoeD_M12_N.pt"]
    state = torch.load(path)["model"]
    dropped = next(key for key in state if "conditional_log_binomial" in key)
    torch.save({"model": {k: v for k, v in state.items() if k != dropped}}, path)
    with pytest.raises(WeightsError, match=f"1 weights are missing, such as {dropped}"):
        open_network("zoe", {path.name: path}, options={}, seed=0, device="cpu")


@pytest.mark.slow
def test_leres_does_not_read_this_programs_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_weights("leres", tmp_path)
    monkeypatch.setattr(sys, "argv", ["musev", "--name", "other", "--gpu_ids", "zero"])
    check_runs(open_network("leres", files, options={}, seed=0, device="cpu"))
    assert sys.argv[1] == "--name"


def test_segments_are_painted_small_over_large_in_lasting_colours() -> None:
    large, small = np.zeros((2, 6, 8), bool)
    large[:5] = True
    small[2:4, 2:4] = True
    painted = paint_segments([small, large], (6, 8), seed=0)
    assert not painted[5].any()
    assert (painted[2:4, 2:4] == painted[2, 2]).all()
    assert (painted[0, 0] != painted[2, 2]).any()
    moved = np.roll(small, 3, axis=1)
    again = paint_segments([large, moved], (6, 8), seed=0)
    np.testing.assert_array_equal(again[2, 5], painted[2, 2])
    np.testing.assert_array_equal(again[0, 0], painted[0, 0])
    assert (paint_segments([large], (6, 8), seed=1)[0, 0] != painted[0, 0]).any()
    assert not paint_segments([], (6, 8), seed=0).any()


def test_every_detector_with_weights_is_tested() -> None:
    assert {*SMALL, *LARGE, "hed", "mobile_sam", "sam"} == set(WEIGHTS)
