from __future__ import annotations

import pytest
import torch

from musev.models.temporal import (
    FrameConv,
    TemporalBlock,
    TemporalConv,
    TemporalTransformer,
    zero_frames,
)
from tests.goldens import model_case, model_cases, model_weights

TOLERANCE = 5e-5  # float32 networks; the recorded run itself is 1e-6 from its float64 run


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("temporal_conv"))
def test_temporal_conv_matches_upstream(name: str) -> None:
    case, config, io = model_case(name)
    net = TemporalConv(config.pop("in_dim"), **config)
    net.load_state_dict(model_weights(case))
    if case["call"].get("_skip"):  # layers switched off are not called at all
        torch.testing.assert_close(io["in.hidden_states"], io["out.out"], rtol=0, atol=0)
        return
    out = net(
        io["in.hidden_states"],
        num_frames=case["call"]["num_frames"],
        condition_index=io.get("in.vision_conditon_frames_sample_index"),
    )
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=TOLERANCE)


def build_transformer(config: dict) -> TemporalTransformer:
    cross = not config.get("double_self_attention", True)
    return TemporalTransformer(
        config["in_channels"],
        num_heads=config["num_attention_heads"],
        frame_channels=config["femb_channels"],
        norm_num_groups=config["norm_num_groups"],
        num_layers=config["num_layers"],
        text_channels=config["cross_attention_dim"] if cross else None,
        frame_silu=not config.get("remove_femb_non_linear", False),
        keep_content_condition=config.get("keep_content_condition", False),
    )


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("temporal_transformer"))
def test_temporal_transformer_matches_upstream(name: str) -> None:
    case, config, io = model_case(name)
    net = build_transformer(config)
    net.load_state_dict(model_weights(case))
    if case["call"].get("_skip"):
        torch.testing.assert_close(io["in.hidden_states"], io["out.out"], rtol=0, atol=0)
        return
    out = net(
        io["in.hidden_states"],
        io["in.femb"],
        text_BLD=io.get("in.encoder_hidden_states"),
        condition_index=io.get("in.vision_conditon_frames_sample_index"),
    )
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=TOLERANCE)


@pytest.mark.parity
def test_temporal_block_matches_upstream() -> None:
    case, config, io = model_case("block_temporal__plain")
    net = TemporalBlock(config["dim"], num_heads=config["num_attention_heads"])
    net.load_state_dict(model_weights(case))
    out = net(io["in.hidden_states"])
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=TOLERANCE)


def test_fresh_layers_are_the_identity() -> None:
    x = torch.randn(6, 32, 2, 3)
    frames = torch.randn(1, 3, 16)
    transformer = TemporalTransformer(32, num_heads=4, frame_channels=16)
    assert torch.equal(transformer(x, frames), x)
    assert torch.equal(TemporalConv(32)(x, num_frames=3), x)
    assert transformer.temporal_weight.item() == pytest.approx(1e-5)


def test_sign_of_the_temporal_weight_does_not_matter() -> None:
    net = TemporalConv(32)
    randomize(net)
    x = torch.randn(6, 32, 2, 3)
    out = net(x, num_frames=3)
    net.temporal_weight.data.neg_()
    assert torch.equal(net(x, num_frames=3), out)
    assert not torch.allclose(out, x)


def test_clips_and_pixels_do_not_mix() -> None:
    net = TemporalTransformer(32, num_heads=4, frame_channels=16)
    randomize(net)
    frames = torch.randn(1, 3, 16)
    x = torch.randn(6, 32, 2, 3)
    changed = x.clone()
    changed[3:] += torch.randn(3, 32, 2, 3)  # the second clip only
    assert torch.equal(net(changed, frames)[:3], net(x, frames)[:3])
    assert not torch.allclose(net(changed, frames)[3:], net(x, frames)[3:])


def test_one_frame_embedding_row_serves_all_clips() -> None:
    net = TemporalTransformer(32, num_heads=4, frame_channels=16)
    randomize(net)
    x, frames = torch.randn(6, 32, 2, 3), torch.randn(1, 3, 16)
    torch.testing.assert_close(net(x, frames), net(x, frames.expand(2, -1, -1)), rtol=0, atol=1e-5)


def test_zero_frames_takes_the_union_of_per_clip_indices() -> None:
    x = torch.ones(6, 2)
    out = zero_frames(x, torch.tensor([[0], [2]]), num_frames=3)
    assert out[:, 0].tolist() == [0, 1, 0, 0, 1, 0]
    assert torch.equal(zero_frames(x, None, num_frames=3), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    net = TemporalTransformer(32, num_heads=4, frame_channels=16)
    randomize(net)
    x, frames = torch.randn(6, 32, 2, 3), torch.randn(1, 3, 16)
    expected = net(x, frames)
    out = net.to(dtype)(x.to(dtype), frames.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_frame_convolution_is_the_three_dimensional_one() -> None:
    net = FrameConv(32)
    x = torch.randn(2, 32, 4, 6)
    expected = torch.nn.Conv3d.forward(net, x[..., None])[..., 0]
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-5)
