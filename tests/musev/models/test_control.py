"""Control networks against the original's recorded numbers, and that embedding once is enough."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from musev.errors import ConfigError, ShapeError
from musev.models.attachments import ControlResiduals
from musev.models.control import ControlNet, MultiControlNet, PoseGuider
from tests.goldens import GOLDENS, model_case, model_cases, model_weights, require_goldens

# Features reach 45 in magnitude; DESIGN.md section 9 grants ControlNet features 1e-4.
ATOL = 1e-4


def _outputs(io: dict[str, Tensor]) -> list[Tensor]:
    count = sum(key.startswith("out.down_block_res_samples.") for key in io)
    down = [io[f"out.down_block_res_samples.{i}"] for i in range(count)]
    return [*down, io["out.mid_block_res_sample"]]


def _assert_equal(found: ControlResiduals, expected: list[Tensor]) -> None:
    assert found.mid is not None
    for a, b in zip([*found.down, found.mid], expected, strict=True):
        torch.testing.assert_close(a, b, atol=ATOL, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("controlnet"))
def test_controlnet_equals_the_recorded_output(name: str) -> None:
    case, config, io = model_case(name)
    net = ControlNet(**config).eval()
    net.load_state_dict(model_weights(case), strict=True)
    call = case["call"]
    with torch.no_grad():
        embedded = io.get("in.controlnet_cond_latents")
        if embedded is None:
            embedded = net.embed_condition(io["in.controlnet_cond"])
        found = net(
            io["in.sample"],
            call["timestep"],
            io["in.encoder_hidden_states"],
            embedded,
            scale=call["conditioning_scale"],
            guess_mode=call.get("guess_mode", False),
        )
    _assert_equal(found, _outputs(io))


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("multi_controlnet"))
def test_several_controlnets_equal_the_recorded_output(name: str) -> None:
    case, config, io = model_case(name)
    net = MultiControlNet([ControlNet(**each) for each in config["nets"]]).eval()
    net.load_state_dict(model_weights(case), strict=True)
    images = [io["in.controlnet_cond.0"], io["in.controlnet_cond.1"]]
    with torch.no_grad():
        found = net(
            io["in.sample"],
            case["call"]["timestep"],
            io["in.encoder_hidden_states"],
            net.embed_condition(images),
            scales=case["call"]["conditioning_scale"],
        )
    assert found is not None
    _assert_equal(found, _outputs(io))


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("pose_guider"))
def test_pose_guider_equals_the_recorded_output(name: str) -> None:
    case, config, io = model_case(name)
    net = PoseGuider(**config).eval()
    net.load_state_dict(model_weights(case), strict=True)
    with torch.no_grad():
        found = net(io["in.conditioning"])
    torch.testing.assert_close(found, io["out.out"], atol=5e-5, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("file", "kind", "config"),
    [
        ("controlnet_sd15", ControlNet, {"cross_attention_dim": 768}),
        ("pose_guider", PoseGuider, {}),
    ],
)
def test_full_size_names_and_shapes(file: str, kind: type, config: dict) -> None:
    require_goldens()
    recorded = json.loads((GOLDENS / "fullsize" / f"{file}.json").read_text())
    with torch.device("meta"):
        net = kind(**config)
    found = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert found == recorded["tensors"]


@pytest.fixture(scope="module")
def tiny() -> ControlNet:
    torch.manual_seed(0)
    net = ControlNet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
        conditioning_embedding_out_channels=(4, 4, 8, 8),
    )
    # A fresh ControlNet ends in zeros; give every parameter a value that shows.
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def _inputs(num_rows: int = 4, num_frames: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(num_rows, 4, 4, 6, generator=generator),
        torch.randn(num_rows // num_frames, 5, 12, generator=generator),
        torch.rand(num_frames, 3, 32, 48, generator=generator),
    )


def test_one_embedding_serves_both_guidance_halves(tiny: ControlNet) -> None:
    noisy, text, images = _inputs()
    with torch.no_grad():
        once = tiny(noisy, 500, text, tiny.embed_condition(images))
        doubled = tiny.embed_condition(torch.cat([images, images]))
        twice = tiny(noisy, 500, text.repeat_interleave(2, dim=0), doubled)
    assert once.down[0].shape == (4, 8, 4, 6)
    _assert_equal(once, [*twice.down, twice.mid])


def test_text_belongs_to_the_clip_not_the_frame(tiny: ControlNet) -> None:
    noisy, text, images = _inputs()
    with torch.no_grad():
        embedded = tiny.embed_condition(images)
        both = tiny(noisy, 500, text, embedded)
        second = tiny(noisy[2:], 500, text[1:], embedded)
    torch.testing.assert_close(both.mid[2:], second.mid, atol=1e-5, rtol=0)


def test_nothing_is_run_at_scale_zero(tiny: ControlNet) -> None:
    noisy, text, images = _inputs()
    net = MultiControlNet([tiny, tiny])
    calls = []
    handle = tiny.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        embedded = net.embed_condition([images, images])
        found = net(noisy, 500, text, embedded, scales=[0.0, 0.5])
        alone = tiny(noisy, 500, text, embedded[1], scale=0.5)
        assert net(noisy, 500, text, embedded, scales=[0.0, 0.0]) is None
    handle.remove()
    assert len(calls) == 2
    _assert_equal(found, [*alone.down, alone.mid])


def test_channel_order_follows_the_config(tiny: ControlNet) -> None:
    images = _inputs()[2]
    config = dict(tiny.config) | {"controlnet_conditioning_channel_order": "bgr"}
    config.pop("_use_default_values")  # else diffusers drops every setting named there
    other = ControlNet.from_config(config).eval()
    other.load_state_dict(tiny.state_dict())
    with torch.no_grad():
        assert torch.equal(other.embed_condition(images), tiny.embed_condition(images.flip(1)))


@pytest.mark.parametrize("what", ["text", "embedded"])
def test_rows_that_do_not_divide_are_refused(tiny: ControlNet, what: str) -> None:
    noisy, text, images = _inputs()
    embedded = tiny.embed_condition(images).detach()
    if what == "text":
        text = torch.cat([text, text[:1]])
    else:
        embedded = torch.cat([embedded, embedded[:1]])
    with pytest.raises(ShapeError, match=what):
        tiny(noisy, 500, text, embedded)


def test_every_network_needs_its_inputs(tiny: ControlNet) -> None:
    noisy, text, images = _inputs()
    with pytest.raises(ShapeError, match="2 ControlNets"):
        MultiControlNet([tiny, tiny])(noisy, 500, text, [images], scales=[1.0, 1.0])


def test_networks_with_other_inputs_are_refused() -> None:
    net = ControlNet(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        num_class_embeds=3,
    )
    with pytest.raises(ConfigError, match=r"SD1\.5"):
        net(torch.zeros(1, 4, 4, 4), 1, torch.zeros(1, 2, 12), torch.zeros(1, 8, 4, 4))


def test_an_untrained_pose_guider_adds_nothing() -> None:
    guider = PoseGuider(conditioning_embedding_channels=8, block_out_channels=(4, 4, 8, 8))
    found = guider(torch.rand(2, 3, 3, 16, 24))
    assert found.shape == (2, 8, 3, 2, 3)
    assert not found.any()
