"""The network of text to pose: what it looks at, and that it comes back from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from musev.errors import WeightsError
from musev.models.text_to_pose import (
    NUM_FEATURES,
    PAD,
    TextToPoseNet,
    load_text_to_pose,
    save_text_to_pose,
    signal_at,
)
from musev.text_to_pose_config import WEIGHTS_FILE, TextToPoseConfig

CONFIG = TextToPoseConfig(
    words=("waving", "jumping"), num_frames=6, num_given=2, width=16, depth=1, num_heads=2
)


@pytest.fixture
def net() -> TextToPoseNet:
    torch.manual_seed(0)
    return TextToPoseNet(CONFIG).eval().requires_grad_(False)


def inputs(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    given = {
        "noisy_BTF": torch.randn(2, 6, NUM_FEATURES),
        "times_B": torch.tensor([0.2, 0.9]),
        "words_BL": torch.tensor([[2, 3], [3, PAD]]),
        "given_BTF": torch.randn(2, 6, NUM_FEATURES),
        "is_given_BT": torch.tensor([[True, True, False, False, False, False]] * 2),
        "first_BF": torch.randn(2, NUM_FEATURES),
        "has_first_B": torch.tensor([True, False]),
    }
    return given | changes


@pytest.mark.parametrize(
    ("name", "changed", "clips"),
    [
        ("times_B", torch.tensor([0.3, 0.8]), [True, True]),
        ("words_BL", torch.tensor([[3, 2], [2, PAD]]), [True, True]),
        ("first_BF", torch.zeros(2, NUM_FEATURES), [True, False]),  # the second has none
        ("words_BL", torch.tensor([[2, 3, PAD], [3, PAD, PAD]]), [False, False]),
    ],
)
def test_it_looks_at_what_counts_and_at_nothing_else(
    net: TextToPoseNet, name: str, changed: torch.Tensor, clips: list[bool]
) -> None:
    before, after = net(**inputs()), net(**inputs(**{name: changed}))
    assert before.shape == (2, 6, NUM_FEATURES)
    apart = (before - after).abs().amax(dim=(1, 2)) > 1e-5
    assert apart.tolist() == clips


def test_only_frames_that_are_given_are_read(net: TextToPoseNet) -> None:
    plain = net(**inputs())
    elsewhere = inputs()["given_BTF"].clone()
    elsewhere[:, 2:] = 7.0
    torch.testing.assert_close(net(**inputs(given_BTF=elsewhere)), plain)
    elsewhere[:, :2] = 7.0
    assert (net(**inputs(given_BTF=elsewhere)) - plain).abs().max() > 1e-3


def test_signal_and_noise_share_the_variance() -> None:
    signal, spread = signal_at(torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(signal**2 + spread**2, torch.ones(3))
    assert signal[0] == 1
    assert spread[2] > 0.9999
    assert spread[1] > signal[1]  # noisier than the plain cosine


def test_it_comes_back_from_its_folder(net: TextToPoseNet, tmp_path: Path) -> None:
    save_text_to_pose(net, tmp_path / "new")
    back = load_text_to_pose(tmp_path / "new")
    assert back.config == CONFIG
    torch.testing.assert_close(back(**inputs()), net(**inputs()), atol=5e-3, rtol=5e-3)
    assert not any(parameter.requires_grad for parameter in back.parameters())


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_weights_that_do_not_fit_are_refused(
    net: TextToPoseNet, tmp_path: Path, damage: str
) -> None:
    save_text_to_pose(net, tmp_path)
    path = tmp_path / WEIGHTS_FILE
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        state = load_file(path)
        state.pop("read.bias")
        save_file(state, path)
    with pytest.raises(WeightsError, match=r"model\.safetensors.*text-to-pose"):
        load_text_to_pose(tmp_path)
