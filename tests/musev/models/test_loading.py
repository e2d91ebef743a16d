"""Loading one part: strict keys, real buffers, and refusals that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from musev.config import ScheduleConfig
from musev.errors import WeightsError
from musev.models.image_prompt import ImageProjection
from musev.models.loading import build_empty, fill, load_net, load_tokenizer, read_schedule
from musev.models.tiny import make_byte_tokenizer
from tests.goldens import GOLDENS, require_goldens

CONFIG = {"cross_attention_dim": 4, "clip_embeddings_dim": 3, "clip_extra_context_tokens": 2}


def test_an_empty_network_takes_no_memory_but_keeps_buffers() -> None:
    config = CLIPTextConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1).to_dict()
    net = build_empty(CLIPTextModel, config, where="text")
    assert all(parameter.is_meta for parameter in net.parameters())
    assert torch.equal(net.get_buffer("embeddings.position_ids")[0], torch.arange(77))


def test_filling_copies_converts_and_freezes() -> None:
    net = build_empty(ImageProjection, CONFIG, where="projection")
    given = {key: torch.randn(value.shape) for key, value in net.state_dict().items()}
    filled = fill(net, given, dtype=torch.float32, where="projection")
    assert torch.equal(filled.proj.weight, given["proj.weight"])
    assert filled.proj.weight.data_ptr() != given["proj.weight"].data_ptr()
    assert not filled.training
    assert not filled.proj.weight.requires_grad
    half = build_empty(ImageProjection, CONFIG, where="projection")
    assert fill(half, given, dtype=torch.float16, where="p").norm.bias.dtype == torch.float16


def test_keys_are_checked_under_their_new_names(tmp_path: Path) -> None:
    net = ImageProjection(**CONFIG)
    state = {f"old.{key}": value for key, value in net.state_dict().items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    options: dict[str, Any] = {"dtype": torch.float32, "where": "projection"}
    with pytest.raises(WeightsError, match=r"4 missing: .*4 extra: old\.norm"):
        load_net(ImageProjection, tmp_path, **options)
    options["rename"] = lambda key: key.removeprefix("old.")
    found = load_net(ImageProjection, tmp_path, **options)
    assert torch.equal(found.proj.bias, net.proj.bias)
    with pytest.raises(WeightsError, match=r"of another shape: .*proj\.weight"):
        load_net(ImageProjection, tmp_path, overrides={"clip_embeddings_dim": 5}, **options)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_configs_that_cannot_be_read_are_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"projection: .*config\.json"):
        load_net(ImageProjection, tmp_path, dtype=torch.float32, where="projection")


def test_tokenizers_load_from_either_kind_of_file(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    text = "a (red) coat, ünïcode"
    assert load_tokenizer(tmp_path)(text).input_ids == tokenizer(text).input_ids
    (tmp_path / "tokenizer.json").rename(tmp_path / "other.json")
    with pytest.raises(WeightsError, match="neither"):
        load_tokenizer(tmp_path)
    vocab = json.loads((tmp_path / "other.json").read_text())["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "other.json").unlink()
    assert load_tokenizer(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    make_byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(WeightsError, match="tokenizer: cannot read"):
        load_tokenizer(tmp_path)


@pytest.mark.parity
def test_recorded_schedules_are_read() -> None:
    require_goldens()
    folder = GOLDENS / "pipeline" / "components"
    assert read_schedule(folder / "scheduler") == ScheduleConfig()
    assert read_schedule(folder / "scheduler_zero_snr") == ScheduleConfig(
        beta_schedule="linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
