"""Low-rank factors: nothing at first, then what a kohya file of them adds to the plain network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from musev.models.lora import kohya_block_deltas, kohya_deltas, merge_deltas
from musev.training.loop import run_steps
from musev.training.lora import ATTENTION_PROJECTIONS, add_lora, export_kohya, remove_lora
from musev.training.networks import build_networks, get_sizes
from musev.training.runs import export_to, prepare_run
from tests.musev.training.small import changed, save_small_vae, small_run, weights_of


@pytest.fixture
def unet() -> nn.Module:
    torch.manual_seed(0)
    return build_networks(get_sizes("narrow"), ("unet",), vocab_size=0)["unet"].eval()


@torch.no_grad()
def _estimate(unet: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, 2, 8, 8, generator=generator)
    text = torch.randn(1, 5, 32, generator=generator)
    return unet(noisy, 10, unet.prepare(text))


def test_new_factors_change_nothing_and_alone_can_learn(unet: nn.Module) -> None:
    before = _estimate(unet)
    chosen = add_lora(unet, 2)
    assert torch.equal(_estimate(unet), before)
    assert chosen
    assert all(name.endswith(ATTENTION_PROJECTIONS) for name in chosen)
    assert not any("temp_attentions" in name for name in chosen)
    learning = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * len(chosen)
    assert all(".parametrizations.weight.0." in name for name in learning)


def test_the_file_merged_into_a_plain_network_is_the_trained_one(unet: nn.Module) -> None:
    plain = {name: value.clone() for name, value in unet.state_dict().items()}
    before = _estimate(unet)
    add_lora(unet, 2)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.3)
    trained, file = _estimate(unet), export_kohya(unet)
    assert not torch.allclose(trained, before, atol=1e-4)
    remove_lora(unet)
    assert torch.equal(_estimate(unet), before)
    unet.load_state_dict(plain | merge_deltas(plain, kohya_deltas(file, plain, alpha=1.0)))
    torch.testing.assert_close(_estimate(unet), trained, atol=1e-4, rtol=1e-4)
    scaled = kohya_block_deltas(file, plain, alpha=1.0)  # reads the file's own alpha
    for key, delta in kohya_deltas(file, plain, alpha=1.0).items():
        torch.testing.assert_close(scaled[key], delta, atol=2e-3, rtol=2e-3)


def test_a_trained_stage_exports_its_file(tmp_path: Path) -> None:
    run = small_run("lora", tmp_path, save_small_vae(tmp_path))
    prepared = prepare_run(run)
    before = weights_of(prepared.module)
    run_steps(prepared.trainer, prepared.batches_of, run.stage.loop)
    moved = changed(prepared.module, before)
    assert moved
    assert all(name.endswith((".up", ".down")) for name in moved)
    export_to(prepared, str(tmp_path / "export"))
    file = load_file(tmp_path / "export" / "lora.safetensors")
    ups = [value for name, value in file.items() if name.endswith("lora_up.weight")]
    assert ups
    assert any(up.any() for up in ups)
