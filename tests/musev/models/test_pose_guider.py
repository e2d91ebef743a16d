"""Pose guiders from folders and from bare files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from musev.errors import WeightsError
from musev.models.control import PoseGuider
from musev.models.pose_guider import load_pose_guider
from musev.models.tiny import randomize
from tests.goldens import GOLDENS, load_tensors, model_case, require_goldens


@pytest.mark.parity
def test_sizes_of_the_full_one_are_read_off_its_weights(tmp_path: Path) -> None:
    require_goldens()
    told = json.loads((GOLDENS / "fullsize" / "pose_guider.json").read_text())["tensors"]
    save_file({key: torch.zeros(shape) for key, shape in told.items()}, tmp_path / "g.safetensors")
    net = load_pose_guider(tmp_path / "g.safetensors", dtype=torch.float16)
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == told
    assert next(net.parameters()).dtype == torch.float16


@pytest.mark.parity
def test_a_bare_file_computes_what_was_recorded(tmp_path: Path) -> None:
    case, _, io = model_case("pose_guider__video")
    weights = load_tensors(GOLDENS / "models" / case["weights"])
    save_file(weights, tmp_path / "pose_guider.safetensors")
    net = load_pose_guider(tmp_path / "pose_guider.safetensors", dtype=torch.float32)
    (found,) = [value for key, value in io.items() if key.startswith("out.")]
    (given,) = [value for key, value in io.items() if key.startswith("in.")]
    torch.testing.assert_close(net(given), found, atol=5e-5, rtol=0)


def test_a_folder_and_its_file_are_one_network(tmp_path: Path) -> None:
    net = randomize(
        PoseGuider(conditioning_embedding_channels=8, block_out_channels=(4, 4, 8, 8)),
        seed=0,
        prefix="pose_guider",
    )
    net.save_pretrained(tmp_path)
    of_folder = load_pose_guider(tmp_path, dtype=torch.float32)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    of_file = load_pose_guider(file, dtype=torch.float32)
    poses = torch.rand(1, 3, 2, 16, 16)
    assert torch.equal(of_folder(poses), net(poses))
    assert torch.equal(of_file(poses), net(poses))


def test_another_file_is_told(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="holds no pose guider"):
        load_pose_guider(tmp_path / "x.safetensors", dtype=torch.float32)
