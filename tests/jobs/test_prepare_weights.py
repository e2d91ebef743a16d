"""Weights are checked and written as one folder, by the job's own command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from jobs.prepare_weights import app, main
from musev.config import WeightsConfig
from musev.models.bundle import load_bundle, save_bundle
from musev.models.tiny import make_tiny_bundle

SEEDED = ("--set", "weights.random_seed=3")


def test_the_set_of_flags_is_on_purpose() -> None:
    words = CliRunner().invoke(app, ["--help"]).output.replace("│", " ").split()
    flags = {word for word in words if word.startswith("--") and len(word) > 2}
    assert {"--profile", "--set", "--output", "--vae", "--half", "--help"} <= flags


def test_a_folder_in_half_precision_loads_as_the_same_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "half"
    assert main([*SEEDED, "--output", str(target), "--half"]) == 0
    told = capsys.readouterr().out
    assert f"written to {target}" in told
    stored = load_file(target / "vae" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    found, made = load_bundle(WeightsConfig(bundle=str(target))), make_tiny_bundle(3)
    assert found.networks.keys() == made.networks.keys()
    for part, net in made.networks.items():
        for name, value in net.state_dict().items():
            copy = found.networks[part].state_dict()[name]
            assert torch.equal(copy.float(), value.half().float()), (part, name)
    count = sum(p.numel() for net in made.networks.values() for p in net.parameters())
    assert f"{count:,} parameters" in told


def test_another_vae_is_put_in(tmp_path: Path) -> None:
    """The form in which a training stage exports one."""
    other = make_tiny_bundle(3).vae
    other.decoder.conv_in.weight.mul_(2)
    other.save_pretrained(tmp_path / "export" / "vae")
    target = tmp_path / "new"
    assert main([*SEEDED, "--vae", str(tmp_path / "export"), "--output", str(target)]) == 0
    found, made = load_bundle(WeightsConfig(bundle=str(target))), make_tiny_bundle(3)
    weight = "decoder.conv_in.weight"
    assert torch.equal(found.vae.state_dict()[weight], other.state_dict()[weight])
    assert not torch.equal(found.vae.state_dict()[weight], made.vae.state_dict()[weight])
    assert torch.equal(found.unet.conv_in.weight, made.unet.conv_in.weight)


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").touch()
    assert main([*SEEDED, "--output", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "half", "status"), [("nan", False, 1), (1e6, True, 1), (1e6, False, 0)]
)
def test_values_that_are_no_numbers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, half: bool, status: int
) -> None:
    save_bundle(make_tiny_bundle(0), tmp_path / "bundle")
    file = tmp_path / "bundle" / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.bias"][1] = float(value)
    save_file(state, file)
    flags = ["--set", f"weights.bundle={tmp_path / 'bundle'}", *(["--half"] if half else [])]
    assert main(flags) == status
    assert ("unet.conv_in.bias" in capsys.readouterr().err) == (status == 1)
