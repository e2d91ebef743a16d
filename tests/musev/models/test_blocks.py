from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from musev.errors import ConfigError
from musev.models.attachments import UNetConditioning
from musev.models.blocks import (
    BlockSettings,
    DownBlock,
    NumberEmbedding,
    ResidualLayer,
    Step,
    UpBlock,
    Upsample,
    has_transformers,
    sinusoid,
)
from tests.goldens import model_case, model_weights

SETTINGS = BlockSettings(time_channels=16, text_channels=8, norm_num_groups=8)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def make_step(rows: int, frames: int, *, temporal: bool = True) -> Step:
    return Step(
        conditioning=UNetConditioning(batch=rows // frames, layers={}),
        num_frames=frames,
        time_RD=torch.randn(rows, 16),
        frames_BTD=torch.randn(1, frames, 16) if temporal else None,
    )


@pytest.mark.parity
def test_number_embedding_matches_upstream() -> None:
    case, config, io = model_case("timestep_embedding__x")
    net = NumberEmbedding(config["in_channels"], config["time_embed_dim"])
    net.load_state_dict(model_weights(case))
    torch.testing.assert_close(net(io["in.sample"]), io["out.out"], rtol=0, atol=5e-5)


def test_sinusoid_is_cosines_then_sines_in_float32() -> None:
    out = sinusoid(torch.tensor([981], dtype=torch.float16), 4)
    assert out.dtype == torch.float32
    angles = [981.0, 981.0 / 100]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    torch.testing.assert_close(out[0], torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("skip", [False, True])
def test_skip_time_act_leaves_the_time_embedding_as_it_is(skip: bool) -> None:
    settings = BlockSettings(
        time_channels=16, text_channels=8, norm_num_groups=8, skip_time_act=skip
    )
    net = ResidualLayer(8, 8, settings=settings)
    seen: list[Tensor] = []
    net.time_emb_proj.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    time = torch.randn(2, 16)
    net(torch.randn(2, 8, 4, 4), time)
    assert torch.equal(seen[0], time if skip else nn.functional.silu(time))


def test_output_scale_divides_residual_and_shortcut() -> None:
    net = ResidualLayer(8, 16, settings=SETTINGS)
    scaled = ResidualLayer(8, 16, settings=SETTINGS, output_scale=2.0)
    scaled.load_state_dict(net.state_dict())
    x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    torch.testing.assert_close(scaled(x, time) * 2, net(x, time))


def test_upsample_goes_to_the_size_of_the_skip_connection() -> None:
    net = Upsample(8)
    nn.init.dirac_(net.conv.weight)
    nn.init.zeros_(net.conv.bias)
    x = torch.randn(1, 8, 2, 3)
    doubled = net(x, torch.Size((4, 6)))
    assert torch.equal(doubled, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert net(x, torch.Size((3, 5))).shape[-2:] == (3, 5)


def test_down_block_returns_every_output_as_a_skip_connection() -> None:
    net = DownBlock(
        32,
        64,
        num_layers=2,
        settings=SETTINGS,
        num_heads=4,
        transformers=False,
        downsample=True,
    )
    out, skips = net(torch.randn(6, 32, 5, 4), make_step(6, 3))
    assert [tuple(skip.shape[1:]) for skip in skips] == [(64, 5, 4), (64, 5, 4), (64, 3, 2)]
    assert torch.equal(out, skips[-1])


def test_up_block_uses_the_last_skip_connections_up() -> None:
    net = UpBlock(
        64,
        32,
        skip_channels=[64, 32],
        settings=SETTINGS,
        num_heads=4,
        transformers=False,
        upsample=True,
    )
    skips = [torch.randn(3, width, *size) for width, size in ((32, (5, 4)), (32, (3, 2)))]
    skips.append(torch.randn(3, 64, 3, 2))
    out = net(torch.randn(3, 64, 3, 2), skips, make_step(3, 3))
    assert out.shape == (3, 32, 5, 4)
    assert len(skips) == 1


def test_without_frame_numbers_temporal_convolutions_are_skipped() -> None:
    net = DownBlock(
        32,
        32,
        num_layers=1,
        settings=SETTINGS,
        num_heads=4,
        transformers=False,
        downsample=False,
    )
    for tensor in net.temp_convs.parameters():
        nn.init.normal_(tensor)
    x, step = torch.randn(3, 32, 4, 4), make_step(3, 3, temporal=False)
    out, _ = net(x, step)
    assert torch.equal(out, net.resnets[0](x, step.time_RD))
    on, _ = net(x, Step(**{**vars(step), "frames_BTD": torch.randn(1, 3, 16)}))
    assert not torch.allclose(on, out)


def test_block_types_of_two_and_three_dimensions_mean_the_same() -> None:
    for suffix in ("2D", "3D"):
        assert has_transformers("CrossAttnUpBlock" + suffix)
        assert not has_transformers("DownBlock" + suffix)
    with pytest.raises(ConfigError, match="unknown block type 'AttnDownBlock2D'"):
        has_transformers("AttnDownBlock2D")
