from __future__ import annotations

import pytest
import torch
from torch import nn

from musev.errors import ConfigError
from musev.models.attachments import KeyValue
from musev.models.attention import (
    Attention,
    CrossAttention,
    FeedForward,
    ReferenceFuse,
    SelfAttention,
    SpatialBlock,
    SpatialTransformer,
    attend,
    reference_tokens,
)
from tests.goldens import model_case, model_cases, model_weights

TOLERANCE = 5e-5
SELF, CROSS, FUSE = "attn_self", "attn_cross", "attn_refer_fuse"


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def cases(kind: str, prefix: str = "") -> list:
    return [name for name in model_cases(kind) if str(name).startswith(prefix)] or [
        pytest.param("missing", marks=pytest.mark.parity)
    ]


@pytest.mark.parity
@pytest.mark.parametrize("name", cases("attention", SELF))
def test_self_attention_matches_upstream(name: str) -> None:
    case, config, io = model_case(name)
    net = SelfAttention(config["query_dim"], num_heads=config["heads"])
    net.load_state_dict(model_weights(case))
    reference = io.get("in.refer_emb")
    out = net(
        io["in.hidden_states"],
        num_frames=case["call"]["num_frames"],
        condition_index=io.get("in.vision_conditon_frames_sample_index"),
        reference=None if reference is None else net.key_value(reference_tokens(reference)),
    )
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=TOLERANCE)


def prepare_extra(block: SpatialBlock, io: dict, call: dict, prefix: str = "in."):
    image, face = io.get(f"{prefix}vision_clip_emb"), io.get(f"{prefix}ip_adapter_face_emb")
    return {
        "image": None if image is None else (image, call.get("ip_adapter_scale", 1.0)),
        "face": None if face is None else (face, call.get("ip_adapter_face_scale", 1.0)),
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", cases("attention", CROSS))
def test_cross_attention_matches_upstream(name: str) -> None:
    case, config, io = model_case(name)
    block = SpatialBlock(
        config["query_dim"],
        num_heads=config["heads"],
        text_channels=config["cross_attention_dim"],
        image_prompt=True,
        face_prompt=True,
    )
    block.attn2.load_state_dict(model_weights(case))
    layer = block.prepare(io["in.encoder_hidden_states"], **prepare_extra(block, io, case["call"]))
    out = block.attn2(io["in.hidden_states"], layer.text, layer.extra)
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize("name", cases("attention", FUSE))
def test_reference_fuse_matches_upstream(name: str) -> None:
    case, config, io = model_case(name)
    net = ReferenceFuse(config["query_dim"], num_heads=config["heads"])
    net.load_state_dict(model_weights(case))
    reference = net.key_value(reference_tokens(io["in.encoder_hidden_states"]))
    out = net(io["in.hidden_states"], reference, num_frames=case["call"]["num_frames"])
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=TOLERANCE)


def spatial_config(config: dict, channels: int) -> dict:
    image = config.get("ip_adapter_cross_attn", False)
    return {
        "channels": channels,
        "num_heads": config["num_attention_heads"],
        "text_channels": config["cross_attention_dim"],
        "image_prompt": image,
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", cases("basic_transformer_block", "block_spatial"))
def test_spatial_block_matches_upstream(name: str) -> None:
    case, config, io = model_case(name)
    net = SpatialBlock(**spatial_config(config, config["dim"]))
    net.load_state_dict(model_weights(case))
    call = case["call"]["cross_attention_kwargs"]
    layer = net.prepare(
        io["in.encoder_hidden_states"],
        **prepare_extra(net, io, call, "in.ca_"),
        reference_BCTHW=io.get("in.self_attn_block_embs.0"),
    )
    if "out.written.0" in io:  # what the reference network keeps
        written = net.norm1(io["in.hidden_states"])
        torch.testing.assert_close(written, io["out.written.0"], rtol=0, atol=TOLERANCE)
    out = net(
        io["in.hidden_states"],
        layer,
        num_frames=call["num_frames"],
        condition_index=io.get("in.ca_vision_conditon_frames_sample_index"),
    )
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize("name", cases("transformer_2d"))
def test_spatial_transformer_matches_upstream(name: str) -> None:
    case, config, io = model_case(name)
    net = SpatialTransformer(
        **spatial_config(config, config["in_channels"]),
        norm_num_groups=config["norm_num_groups"],
    )
    net.load_state_dict(model_weights(case))
    call = case["call"]["cross_attention_kwargs"]
    layer = net.block.prepare(
        io["in.encoder_hidden_states"], **prepare_extra(net.block, io, call, "in.ca_")
    )
    out = net(
        io["in.hidden_states"],
        layer,
        num_frames=call["num_frames"],
        condition_index=io.get("in.ca_vision_conditon_frames_sample_index"),
    )
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=TOLERANCE)


def naive(query, key, value, heads: int) -> torch.Tensor:
    parts = []
    for q, k, v in zip(*(x.chunk(heads, dim=-1) for x in (query, key, value)), strict=True):
        parts.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v)
    return torch.cat(parts, dim=-1)


def test_attend_shared_keys_equal_repeated_keys() -> None:
    query = torch.randn(6, 5, 16)
    shared = KeyValue(torch.randn(2, 7, 16), torch.randn(2, 7, 16))
    repeated = [x.repeat_interleave(3, dim=0) for x in shared]
    expected = naive(query, *repeated, heads=4)
    torch.testing.assert_close(attend(query, shared, num_heads=4), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", [torch.tensor([1]), torch.tensor([[0, 2], [1, 1]])])
def test_self_attention_equals_projecting_the_joined_tokens(index: torch.Tensor) -> None:
    """The gathered keys are those of a plain concatenation before the projection."""
    net = SelfAttention(16, num_heads=4)
    x = torch.randn(6, 5, 16)
    x_BTPC = x.unflatten(0, (2, 3))
    per_clip_index = index if index.ndim == 2 else index.expand(2, -1)
    joined = []
    for clip, frames in enumerate(per_clip_index):
        picked = x_BTPC[clip, frames].flatten(0, 1)
        joined += [torch.cat([frame, picked]) for frame in x_BTPC[clip]]
    tokens = torch.stack(joined)
    expected = net.to_out[0](naive(net.to_q(x), net.to_k(tokens), net.to_v(tokens), heads=4))
    out = net(x, num_frames=3, condition_index=index)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_reference_fuse_starts_as_the_identity() -> None:
    net = ReferenceFuse(16, num_heads=4)
    x = torch.randn(6, 16, 2, 3)
    reference = net.key_value(torch.randn(2, 9, 16))
    assert torch.equal(net(x, reference, num_frames=3), x)


def test_scale_at_or_below_zero_leaves_no_branch() -> None:
    block = SpatialBlock(16, num_heads=4, text_channels=8, image_prompt=True, face_prompt=True)
    text, tokens = torch.randn(2, 7, 8), torch.randn(2, 4, 8)
    assert block.prepare(text, image=(tokens, 0.0), face=(tokens, -1.0)).extra == ()
    assert len(block.prepare(text, image=(tokens, 0.1), face=(tokens, 2.0)).extra) == 2


def test_layer_norm_eps_zero_divides_by_nothing_and_the_other_value_does_not() -> None:
    text = torch.randn(1, 7, 8)
    flat = torch.ones(1, 3, 16)  # all channels equal: no variance
    for eps, finite in ((0.0, False), (1e-5, True)):
        block = SpatialBlock(16, num_heads=4, text_channels=8, layer_norm_eps=eps)
        out = block(flat, block.prepare(text), num_frames=1)
        assert out.isfinite().all().item() is finite


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match="3 attention heads"):
        Attention(16, num_heads=3)


def test_feed_forward_gates_with_the_second_half() -> None:
    net = FeedForward(4)
    nn.init.zeros_(net.net[0].proj.weight[16:])
    nn.init.zeros_(net.net[0].proj.bias[16:])
    out = net(torch.randn(2, 4))
    torch.testing.assert_close(out, net.net[2].bias.expand(2, -1))


def test_branches_have_their_own_softmax() -> None:
    net = CrossAttention(16, num_heads=4, context_channels=8, image_prompt=True)
    x, text, tokens = torch.randn(2, 5, 16), torch.randn(2, 7, 8), torch.randn(2, 4, 8)
    text_kv, image_kv = net.key_value(text), net.image_key_value(tokens)
    query = net.to_q(x)
    expected = naive(query, *text_kv, heads=4) + 0.7 * naive(query, *image_kv, heads=4)
    out = net(x, text_kv, ((image_kv, 0.7),))
    torch.testing.assert_close(out, net.to_out[0](expected), rtol=0, atol=1e-6)
