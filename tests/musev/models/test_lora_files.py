"""One change in every layout that LoRA files come in; other adapters are told by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from musev.errors import WeightsError
from musev.models.lora_files import lora_pairs, read_lora

State = dict[str, Tensor]
DOWN, UP = torch.arange(8.0).reshape(2, 4), torch.arange(6.0).reshape(3, 2)
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = TO_Q.replace("to_q", "to_out.0")
Q_PROJ = "text_model.encoder.layers.0.self_attn.q_proj"
UNET_NAME = "lora_unet_" + TO_Q.replace(".", "_")
OUT_NAME = "lora_unet_" + TO_OUT.replace(".", "_")
TEXT_NAME = "lora_te_" + Q_PROJ.replace(".", "_")
PROCESSOR = TO_Q.replace("attn1.to_q", "attn1.processor")
LAYOUTS = {
    "kohya": [(f"{UNET_NAME}.lora_{{}}.weight", "down up", UNET_NAME)],
    "diffusers-old": [
        (f"unet.{PROCESSOR}.to_q_lora.{{}}.weight", "down up", UNET_NAME),
        (f"unet.{PROCESSOR}.to_out_lora.{{}}.weight", "down up", OUT_NAME),
        (f"text_encoder.{Q_PROJ}.lora_linear_layer.{{}}.weight", "down up", TEXT_NAME),
    ],
    "attention-processors-only": [(f"{PROCESSOR}.to_q_lora.{{}}.weight", "down up", UNET_NAME)],
    "diffusers-middle": [(f"unet.{TO_OUT}.lora.{{}}.weight", "down up", OUT_NAME)],
    "diffusers-peft": [
        (f"unet.{TO_OUT}.lora_{{}}.weight", "A B", OUT_NAME),
        (f"text_encoder.{Q_PROJ}.lora_{{}}.weight", "A B", TEXT_NAME),
    ],
    "peft": [
        (f"base_model.model.{TO_Q}.lora_{{}}.weight", "A B", UNET_NAME),
        (f"base_model.model.{Q_PROJ}.lora_{{}}.weight", "A B", TEXT_NAME),
    ],
    "peft-named": [(f"base_model.model.{TO_Q}.lora_{{}}.default.weight", "A B", UNET_NAME)],
}


def _state(layout: str) -> State:
    found = {}
    for pattern, leaves, _ in LAYOUTS[layout]:
        for leaf, value in zip(leaves.split(), (DOWN, UP), strict=True):
            found[pattern.format(leaf)] = value.clone()
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pairs(layout: str) -> None:
    pairs = lora_pairs(_state(layout))
    assert set(pairs) == {name for _, _, name in LAYOUTS[layout]}
    for pair in pairs.values():
        assert torch.equal(pair.product(), UP @ DOWN)
        assert (pair.alpha, pair.rank) == (None, 2)


def test_alphas_are_found_in_keys_and_in_metadata(tmp_path: Path) -> None:
    kohya = _state("kohya") | {f"{UNET_NAME}.alpha": torch.tensor(1.0)}
    assert lora_pairs(kohya)[UNET_NAME].alpha == 1.0

    told = {"unet.r": 2, "unet.lora_alpha": 8, "text_encoder.lora_alpha": 3}
    told |= {"text_encoder.use_rslora": True}
    file = tmp_path / "style.safetensors"
    save_file(_state("diffusers-peft"), file, {"lora_adapter_metadata": json.dumps(told)})
    pairs = read_lora(file)
    assert pairs[OUT_NAME].alpha == 8
    assert pairs[TEXT_NAME].alpha == pytest.approx(3 * 2**0.5)  # over the rank: alpha / sqrt(rank)
    told["unet.alpha_pattern"] = {TO_OUT: 5}
    save_file(_state("diffusers-peft"), file, {"lora_adapter_metadata": json.dumps(told)})
    assert read_lora(file)[OUT_NAME].alpha == 5


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.lora_mid.weight", "LoCon"),
        ("unet.x.lora_magnitude_vector", "DoRA"),
        ("1.to_k_ip.weight", "IP-Adapter"),
        ("conv_in.weight", "ends in none of"),
    ],
)
def test_other_adapters_are_refused_by_name(key: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({key: DOWN}, file)
    with pytest.raises(WeightsError, match=rf"other\.safetensors.*{kind}"):
        read_lora(file)
