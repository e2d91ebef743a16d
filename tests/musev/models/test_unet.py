from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from musev.errors import ConfigError, ShapeError
from musev.models.attachments import (
    ConditionFrames,
    ControlResiduals,
    FacePrompt,
    FramePositions,
    ImagePrompt,
    PoseFeatures,
    ReferenceFeatures,
    TemporalOff,
)
from musev.models.attention import Attention
from musev.models.reference import ReferenceNet2D
from musev.models.unet import RELEASED, UNet3DConditionModel, released_config
from tests.goldens import GOLDENS, require_goldens

SIZES: dict[str, Any] = {
    "block_out_channels": (32, 64, 64, 64),  # equal widths at 1 and 3: MODELS.md 1.4, step 8
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
BATCH, FRAMES, SIDE = 2, 3, 8


def randomize(net: torch.nn.Module, seed: int = 0) -> None:
    """Replace zeros of fresh modules, so that every part has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            values = torch.randn(tensor.shape, generator=generator)
            is_norm = tensor.ndim == 1 and name.endswith("weight")
            tensor.copy_(values * 0.1 + 1 if is_norm else values * 0.1)


@pytest.fixture(scope="module")
def net() -> UNet3DConditionModel:
    config = released_config("musev_referencenet", face=True) | SIZES
    network = UNet3DConditionModel(**config).eval()
    randomize(network)
    return network


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def noisy() -> Tensor:
    return torch.randn(BATCH, 4, FRAMES, SIDE, SIDE)


@pytest.fixture
def text() -> Tensor:
    return torch.randn(BATCH, 5, 16)


def make_references(images: int = 1, batch: int = BATCH) -> ReferenceFeatures:
    config = {**SIZES, "need_self_attn_block_embs": True}
    network = ReferenceNet2D(**config)
    randomize(network, seed=1)
    with torch.no_grad():
        return network(torch.randn(batch, 4, images, SIDE, SIDE), torch.randn(batch, 4, 16))


def make_control(rows: int = BATCH * FRAMES) -> ControlResiduals:
    shapes = [(32, 8), (32, 8), (32, 4), (64, 4), (64, 2), (64, 2), (64, 1), (64, 1)]
    down = tuple(torch.randn(rows, width, side, side) for width, side in shapes)
    return ControlResiduals(down, torch.randn(rows, 64, 1, 1))


# One of each that changes the output, by name; the second entry says when it is given.
ATTACHMENTS: dict[str, tuple[Any, str]] = {
    "image": (lambda: ImagePrompt(torch.randn(BATCH, 4, 16)), "request"),
    "face": (lambda: FacePrompt(torch.randn(BATCH, 4, 16)), "request"),
    "fuse": (
        lambda: dataclasses.replace(make_references(), self_attention=None),
        "request",
    ),
    "references": (make_references, "request"),
    "own": (lambda: dataclasses.replace(make_references(), down=(), mid=None), "request"),
    "condition": (lambda: ConditionFrames((0,)), "call"),
    "control": (make_control, "call"),
    "pose": (lambda: PoseFeatures(torch.randn(BATCH * FRAMES, 32, SIDE, SIDE)), "call"),
    "positions": (lambda: FramePositions(motion_speed=3.0), "call"),
    "off": (TemporalOff, "call"),
}

EVERYTHING = [name for name in ATTACHMENTS if name not in ("fuse", "own", "off")]


def attach(*names: str) -> tuple[tuple[object, ...], tuple[object, ...]]:
    made = [(make(), when) for make, when in (ATTACHMENTS[name] for name in names)]
    request = tuple(item for item, when in made if when == "request")
    return request, tuple(item for item, when in made if when == "call")


@torch.no_grad()
def run(net, noisy, text, request=(), call=()) -> Tensor:
    return net(noisy, 500, net.prepare(text, request), call)


@pytest.mark.parametrize("name", ATTACHMENTS)
def test_each_attachment_changes_the_output(net, noisy, text, name: str) -> None:
    plain = run(net, noisy, text)
    assert not torch.allclose(run(net, noisy, text, *attach(name)), plain, atol=1e-4)


@pytest.mark.parametrize(
    ("request_", "call"),
    [
        ((ImagePrompt(torch.ones(BATCH, 4, 16), scale=0.0),), ()),
        ((FacePrompt(torch.ones(BATCH, 4, 16), scale=-0.5),), ()),
        ((ReferenceFeatures(),), ()),
        ((), (FramePositions(),)),
        ((), (ControlResiduals(()),)),
    ],
)
def test_an_attachment_without_effect_is_the_plain_network_bit_for_bit(
    net, noisy, text, request_, call
) -> None:
    assert torch.equal(run(net, noisy, text, request_, call), run(net, noisy, text))


def test_attaching_everything_leaves_no_trace_in_the_network(net, noisy, text) -> None:
    plain = run(net, noisy, text)
    run(net, noisy, text, *attach(*EVERYTHING))
    assert torch.equal(run(net, noisy, text), plain)


def test_a_single_frame_ignores_condition_frames(net, noisy, text) -> None:
    single = noisy[:, :, :1]
    plain = run(net, single, text)
    assert torch.equal(run(net, single, text, (), (ConditionFrames((0,)),)), plain)


def test_with_temporal_layers_off_frames_do_not_mix(net, noisy, text) -> None:
    other = noisy.clone()
    other[:, :, 2] += 1
    before, after = (run(net, x, text, (), (TemporalOff(),)) for x in (noisy, other))
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    mixed = run(net, noisy, text) - run(net, other, text)
    assert mixed[:, :, :2].abs().max() > 1e-4


def test_clips_of_a_batch_do_not_mix(net, noisy, text) -> None:
    request, call = attach("image", "references", "condition")
    image, references = request
    both = run(net, noisy, text, request, call)
    alone = []
    for clip in range(BATCH):
        one = slice(clip, clip + 1)
        own_request = (
            ImagePrompt(image.tokens[one]),
            ReferenceFeatures(
                tuple(x[one] for x in references.down),
                references.mid[one],
                tuple(x[one] for x in references.self_attention),
            ),
        )
        alone.append(run(net, noisy[one], text[one], own_request, call))
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-4)


def test_tokens_per_frame_equal_tokens_per_clip_when_they_repeat(net, noisy, text) -> None:
    tokens = torch.randn(BATCH, 4, 16)

    def per_frame(x: Tensor) -> Tensor:
        return x[:, None].expand(-1, FRAMES, -1, -1)

    short = run(net, noisy, text, (ImagePrompt(tokens, 0.5),))
    long = run(net, noisy, per_frame(text), (ImagePrompt(per_frame(tokens), 0.5),))
    torch.testing.assert_close(short, long, rtol=0, atol=1e-4)


def test_condition_index_may_be_a_tuple_or_a_tensor_of_one_or_two_axes(net, noisy, text) -> None:
    expected = run(net, noisy, text, (), (ConditionFrames((0, 2)),))
    for index in (torch.tensor([0, 2]), torch.tensor([[0, 2]] * BATCH)):
        torch.testing.assert_close(
            run(net, noisy, text, (), (ConditionFrames(index),)), expected, rtol=0, atol=1e-4
        )


def test_explicit_frame_positions_are_not_scaled(net, noisy, text) -> None:
    scaled = run(net, noisy, text, (), (FramePositions(motion_speed=4.0),))
    index = torch.tensor([[0, 4, 8]]).expand(BATCH, -1)
    given = run(net, noisy, text, (), (FramePositions(99.0, index),))
    torch.testing.assert_close(given, scaled, rtol=0, atol=1e-4)


def test_steps_project_nothing_of_the_request_again(net, noisy, text) -> None:
    """The key and value layers see the frames' own tokens only, whatever is attached."""
    request, call = attach(*EVERYTHING)
    conditioning = net.prepare(text, request)
    seen: dict[str, int] = {}
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, Attention):
            for leaf in ("to_k", "to_v", "to_k_ip", "ip_adapter_face_to_k_ip"):
                if hasattr(module, leaf):

                    def count(_, args, out, key=f"{name}.{leaf}") -> None:
                        seen[key] = args[0].shape[:-1].numel()

                    hooks.append(getattr(module, leaf).register_forward_hook(count))
    with torch.no_grad():
        net(noisy, 500, conditioning, call)
    for hook in hooks:
        hook.remove()
    spatial = {key: tokens for key, tokens in seen.items() if ".temp_attentions." not in key}
    # Cross attention projects nothing; self and fuse attention project each own token once.
    assert not any(".attn2." in key for key in spatial)
    assert max(spatial.values()) == BATCH * FRAMES * SIDE * SIDE
    assert any("refer_emb_attns" in key for key in spatial)


def test_conditioning_survives_pickling_and_moves(net, noisy, text) -> None:
    request, call = attach("image", "fuse", "condition")
    conditioning = net.prepare(text, request)
    again = pickle.loads(pickle.dumps(conditioning))
    with torch.no_grad():
        assert torch.equal(
            net(noisy, 7, conditioning, call), net(noisy, 7, again.to("cpu", torch.float32), call)
        )
    half = conditioning.to(torch.bfloat16)
    layer = next(iter(half.layers.values()))
    assert {x.dtype for x in (*layer.text, *layer.extra[0].key_value)} == {torch.bfloat16}
    assert {kv.key_BLC.dtype for kv in half.references.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(noisy, text, dtype: torch.dtype) -> None:
    config = released_config("musev_referencenet") | SIZES
    network = UNet3DConditionModel(**config)
    randomize(network)
    request, call = attach("image", "fuse", "condition")
    expected = run(network, noisy, text, request, call)
    features = request[1]
    cast = (
        ImagePrompt(request[0].tokens.to(dtype)),
        ReferenceFeatures(tuple(x.to(dtype) for x in features.down), features.mid.to(dtype)),
    )
    out = run(network.to(dtype), noisy.to(dtype), text.to(dtype), cast, call)
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_gradients_reach_every_used_parameter(net, noisy, text) -> None:
    request, call = attach(*EVERYTHING)
    net.zero_grad(set_to_none=True)
    out = net(noisy, 500, net.prepare(text, request), call)
    out.square().mean().backward()
    missing = [name for name, x in net.named_parameters() if x.grad is None]
    assert missing == []
    net.zero_grad(set_to_none=True)


def test_gradient_checkpointing_gives_the_same_gradients(noisy, text) -> None:
    network = UNet3DConditionModel(**(released_config("musev_referencenet") | SIZES)).train()
    randomize(network)
    gradients = []
    for enable in (False, True):
        if enable:
            network.enable_gradient_checkpointing()
        network.zero_grad(set_to_none=True)
        network(noisy, 500, network.prepare(text)).square().mean().backward()
        gradients.append(network.conv_in.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_fresh_video_layers_leave_the_image_network_unchanged(noisy, text) -> None:
    """Training starts from the image model: new temporal and fuse layers are the identity."""
    network = UNet3DConditionModel(**(released_config("musev_referencenet") | SIZES)).eval()
    request, _ = attach("fuse")
    plain = run(network, noisy, text, (), (TemporalOff(),))
    assert torch.equal(run(network, noisy, text, request), plain)


def test_save_and_load_keep_config_and_weights(net, noisy, text, tmp_path) -> None:
    net.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    again = UNet3DConditionModel.from_pretrained(tmp_path)
    assert again.config.need_t2i_ip_adapter_face is True
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    # Loaded buffers are aligned differently, which changes the last bits of a product.
    torch.testing.assert_close(run(again, noisy, text), run(net, noisy, text), rtol=0, atol=1e-4)


def test_a_two_dimensional_config_builds_the_same_network() -> None:
    """The published folders hold Stable Diffusion's own config.json beside the video weights."""
    sd15 = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "center_input_sample": False,
        "down_block_types": [
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "up_block_types": [
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ],
        **SIZES,
    }
    flags = {k: v for k, v in released_config("musev").items() if k not in SIZES}
    with torch.device("meta"):
        image = UNet3DConditionModel.from_config({**sd15, **flags})
        video = UNet3DConditionModel(**(released_config("musev") | SIZES))
    assert image.state_dict().keys() == video.state_dict().keys()


FULL = {
    "unet_musev": ("musev", False),
    "unet_musev_referencenet": ("musev_referencenet", False),
    "unet_musev_referencenet_pose": ("musev_referencenet_pose", False),
    "unet_musev_referencenet_with_ip_adapter_face": ("musev_referencenet", True),
}


def build_full(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        if name in FULL:
            variant, face = FULL[name]
            return UNet3DConditionModel(**released_config(variant, face=face))
        recorded = json.loads((GOLDENS / "fullsize" / f"{name}.json").read_text())
        return ReferenceNet2D(**recorded["constructor"])


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", [*FULL, "referencenet_musev_referencenet", "referencenet_with_self_attn_embs"]
)
def test_full_size_names_and_shapes_match_upstream(name: str) -> None:
    require_goldens()
    recorded = json.loads((GOLDENS / "fullsize" / f"{name}.json").read_text())
    own = {key: list(value.shape) for key, value in build_full(name).state_dict().items()}
    assert own == recorded["tensors"]
    assert sum(torch.Size(shape).numel() for shape in own.values()) == recorded["total_parameters"]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("musev", "unet_musev"),
        ("ref", "unet_musev_referencenet"),
        ("refnet", "referencenet_musev_referencenet"),
    ],
)
def test_image_weights_can_be_laid_over(key: str, name: str) -> None:
    """Stable Diffusion 1.5's U-Net: which of its parameters exist here, with equal shapes."""
    require_goldens()
    folder = GOLDENS / "fullsize"
    sd15 = json.loads((folder / "sd15_unet2d.json").read_text())["tensors"]
    relation = json.loads((folder / "relation_to_sd15.json").read_text())[key]
    own = {name: list(value.shape) for name, value in build_full(name).state_dict().items()}
    common = sd15.keys() & own.keys()
    assert len(common) == relation["common"]
    assert len(own) - len(common) == relation["extra_here"]
    assert sorted(sd15.keys() - own.keys()) == sorted(relation["sd15_keys_missing_here"])
    assert all(own[name] == sd15[name] for name in common)


def test_released_networks_and_their_face_branch() -> None:
    assert set(RELEASED) == {"musev", "musev_referencenet", "musev_referencenet_pose"}
    assert released_config("musev_referencenet", face=True)["need_t2i_ip_adapter_face"] is True
    config = released_config("musev")
    config["layers_per_block"] = 1
    assert released_config("musev")["layers_per_block"] == 2
    with pytest.raises(ConfigError, match="no face branch"):
        released_config("musev", face=True)
    with pytest.raises(ConfigError, match="no released network 'muse'"):
        released_config("muse")


@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        ({"need_t2i_facein": True}, "need_t2i_facein=True belongs to no released network"),
        ({"need_vis_cond_mask": True}, "need_vis_cond_mask"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"temporal_transformer": "Other"}, "temporal_transformer='Other'"),
        ({"need_t2i_ip_adapter_face": True}, "needs ip_adapter_cross_attn"),
    ],
)
def test_settings_of_no_released_network_are_refused(settings, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        UNet3DConditionModel(**SIZES, **settings)


@pytest.mark.parametrize(
    ("request_", "call", "phrase"),
    [
        ((ConditionFrames((0,)),), (), "prepare cannot use ConditionFrames"),
        ((), (ImagePrompt(torch.ones(BATCH, 4, 16)),), "cannot use ImagePrompt"),
        ((ImagePrompt(torch.ones(3, 4, 16)),), (), "ImagePrompt: 3 clips, but the text has 2"),
        ((ImagePrompt(torch.ones(BATCH, 4, 16)),) * 2, (), "attached 2 times"),
        ((ReferenceFeatures((torch.ones(BATCH, 32, 1, 8, 8),)),), (), "1 reference features"),
        (
            (ReferenceFeatures(mid=torch.ones(BATCH, 32, 1, 1, 1)),),
            (),
            "mid_block_refer_emb_attns reads features of 64 channels, got 32",
        ),
        (
            (ReferenceFeatures(self_attention=(torch.ones(BATCH, 32, 1, 8, 8),)),),
            (),
            "1 self-attention features for",
        ),
    ],
)
def test_misplaced_attachments_are_named(net, noisy, text, request_, call, phrase: str) -> None:
    with pytest.raises(ShapeError, match=phrase):
        run(net, noisy, text, request_, call)


def test_batch_of_the_conditioning_is_checked(net, noisy, text) -> None:
    with pytest.raises(ShapeError, match="1 clips, but the conditioning was prepared for 2"):
        net(noisy[:1], 500, net.prepare(text))


def test_attachments_a_network_has_no_weights_for_are_refused(text) -> None:
    network = UNet3DConditionModel(**(released_config("musev") | SIZES))
    with pytest.raises(ConfigError, match="no weights for ImagePrompt"):
        network.prepare(text, attach("image")[0])
    with pytest.raises(ConfigError, match="no weights for FacePrompt"):
        network.prepare(text, attach("face")[0])
    with pytest.raises(ConfigError, match="no fuse attentions"):
        network.prepare(text, attach("fuse")[0])
