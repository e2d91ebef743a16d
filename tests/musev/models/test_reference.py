from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from musev.errors import ConfigError, ShapeError
from musev.models.attachments import ReferenceFeatures
from musev.models.reference import ReferenceNet2D
from tests.goldens import model_case, model_cases, model_weights
from tests.musev.models.fullsize import fill_by_rule

TOLERANCE = 1e-4  # features of size 20
FULLSIZE_TOLERANCE = 3e-4
CASES = model_cases("referencenet2d")
TINY = [name for name in CASES if not str(name).startswith("fullsize")]
FULLSIZE = [name for name in CASES if str(name).startswith("fullsize")]
TINY_CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def run(net: ReferenceNet2D, io: dict[str, Tensor], call: dict[str, Any]) -> ReferenceFeatures:
    num_images = call.get("num_frames", 1)
    latents = io["in.sample"].unflatten(0, (-1, num_images)).transpose(1, 2)
    timestep = io["in.timestep"] if "in.timestep" in io else call["timestep"]
    return net(latents, io["in.encoder_hidden_states"], timestep)


def compare(out: ReferenceFeatures, case: dict[str, Any], io: dict[str, Tensor], atol: float):
    recorded = {key: value for key, value in io.items() if key.startswith("out.")}
    flat = {f"out.down_block_refer_embs.{i}": x for i, x in enumerate(out.down)}
    flat["out.mid_block_refer_emb"] = out.mid
    flat |= {f"out.refer_self_attn_emb.{i}": x for i, x in enumerate(out.self_attention or ())}
    assert flat.keys() == recorded.keys()
    for key, value in flat.items():
        if case["call"]["return_ndim"] == 4:  # the original can leave images in the batch
            value = value.transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(value, recorded[key], rtol=0, atol=atol)


@pytest.mark.parity
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_features_match_upstream(name: str) -> None:
    case, config, io = model_case(name)
    net = ReferenceNet2D(**config)
    net.load_state_dict(model_weights(case))
    compare(run(net, io, case["call"]), case, io, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FULLSIZE)
@torch.no_grad()
def test_full_size_features_match_upstream(name: str) -> None:
    case, config, io = model_case(name)
    with torch.device("meta"):
        net = ReferenceNet2D(**config)
    fill_by_rule(net, case["weights_rule"])
    compare(run(net, io, case["call"]), case, io, FULLSIZE_TOLERANCE)


@torch.no_grad()
def test_each_image_is_seen_alone() -> None:
    torch.manual_seed(0)
    net = ReferenceNet2D(**TINY_CONFIG)
    latents, tokens = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 3, 16)
    both = net(latents, tokens)
    second = net(latents[:, :, 1:], tokens)
    torch.testing.assert_close(both.mid[:, :, 1:], second.mid, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tokens_may_be_a_row_a_clip_or_a_row_an_image() -> None:
    torch.manual_seed(0)
    net = ReferenceNet2D(**TINY_CONFIG)
    latents, tokens = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 3, 16)
    expected = net(latents, tokens).mid
    per_image = tokens[:, None].expand(-1, 3, -1, -1)
    for form in (per_image, per_image.flatten(0, 1)):
        torch.testing.assert_close(net(latents, form).mid, expected, rtol=0, atol=1e-5)
    with pytest.raises(ShapeError, match="4 token rows"):
        net(latents, torch.randn(4, 3, 16))


def test_the_way_up_exists_only_for_self_attention_features(tmp_path) -> None:
    plain = ReferenceNet2D(**TINY_CONFIG)
    whole = ReferenceNet2D(**TINY_CONFIG, need_self_attn_block_embs=True)
    assert plain.state_dict().keys() < whole.state_dict().keys()
    left = [key for key in whole.state_dict() if key.startswith("up_blocks.3.attentions.1.")]
    suffixes = {key.removeprefix("up_blocks.3.attentions.1.") for key in left}
    expected = {"norm", "proj_in", "transformer_blocks.0.norm1"}
    assert {suffix.rpartition(".")[0] for suffix in suffixes} == expected
    plain.save_pretrained(tmp_path)
    again = ReferenceNet2D.from_pretrained(tmp_path)
    for key, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="act_fn='gelu'"):
        ReferenceNet2D(**TINY_CONFIG, act_fn="gelu")
