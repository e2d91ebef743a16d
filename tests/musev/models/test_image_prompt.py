"""Projections against the original's recorded numbers, and the tokens of real pictures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from musev.errors import ShapeError
from musev.models import image_prompt
from musev.models.image_prompt import ImageProjection, Resampler, encode_image_prompt
from tests.goldens import (
    GOLDENS,
    load_tensors,
    model_case,
    model_cases,
    model_weights,
    pipeline_case,
    require_goldens,
)

CLASSES = {
    "ImageProjModel": image_prompt.ImageProjection,
    "Resampler": image_prompt.Resampler,
    "MLPProjModel_faceid": image_prompt.FaceIdProjection,
    "ProjPlusModel": image_prompt.ProjPlusModel,
    "VerstailSDLastHiddenState2ImageEmb": image_prompt.NormalizedTokensHead,
    "OriginLastHiddenState2ImageEmbd": image_prompt.ImageEmbeddingHead,
    "OriginLastHiddenState2Poolout": image_prompt.PooledHead,
}


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases(*CLASSES))
def test_projection_equals_the_recorded_output(name: str) -> None:
    case, config, io = model_case(name)
    net = CLASSES[case["kind"]](**config)
    net.load_state_dict(model_weights(case), strict=True)
    inputs = [io[f"in.{key}"] for key in case["inputs"]]
    with torch.no_grad():
        out = net(*inputs, **case["call"])
    # Sums run in another order than the original's; its own distance to float64 is up to 6e-6.
    torch.testing.assert_close(out, io["out.out"], atol=5e-5, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("ip_adapter_image_proj", "ImageProjModel"),
        ("ip_adapter_plus_resampler", "Resampler"),
        ("ip_adapter_faceid_mlp_proj", "MLPProjModel_faceid"),
    ],
)
def test_full_size_names_and_shapes(file: str, kind: str) -> None:
    require_goldens()
    recorded = json.loads((GOLDENS / "fullsize" / f"{file}.json").read_text())
    with torch.device("meta"):
        net = CLASSES[kind](**recorded["constructor"])
    found = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert found == recorded["tensors"]


def _recorded_encoder() -> tuple[CLIPVisionModelWithProjection, ImageProjection]:
    folder = GOLDENS / "pipeline" / "components"
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        folder / "image_encoder", dtype=torch.float32
    )
    part = folder / "ip_adapter_image_proj"
    projection = ImageProjection(**json.loads((part / "config.json").read_text()))
    weights = load_tensors(part / "model.safetensors")
    projection.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    return encoder.eval(), projection.eval()


def _crop_resize(frame_CYX: torch.Tensor, height: int, width: int) -> np.ndarray:
    """The original's crop, written out again (ALGORITHM.md 5.3): pictures lose an edge row."""
    picture = Image.fromarray(frame_CYX.permute(1, 2, 0).numpy())
    num_x, num_y = picture.size
    spare_x, spare_y = num_x - num_y * width / height, num_y - num_x * height / width
    if spare_x >= 0:
        box = [math.ceil(spare_x / 2), 0, math.ceil(num_x - spare_x / 2), num_y - 1]
    else:
        box = [0, math.ceil(spare_y / 2), num_x - 1, math.ceil(num_y - spare_y / 2)]
    edges = [min(box[2], num_x - 1), min(box[3], num_y - 1)]
    return np.asarray(picture.crop((*box[:2], *edges)).resize((width, height)))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["ref_ip_single", "ip_2images", "ref_ip_parallel"])
def test_image_tokens_equal_the_pipelines(name: str) -> None:
    case, tensors = pipeline_case(name)
    encoder, projection = _recorded_encoder()
    frames_CTYX = tensors["in.ip_adapter_image"][0]
    call = case["call"]
    frames = np.stack(
        [_crop_resize(frame, call["height"], call["width"]) for frame in frames_CTYX.unbind(1)]
    )
    tokens = encode_image_prompt(encoder, projection, frames, with_unconditional=True)
    expected = tensors["c0.ip_adapter_image_emb"]
    assert tokens.shape == (2, 4 * len(frames), 32)
    torch.testing.assert_close(tokens, expected.reshape(tokens.shape), atol=5e-5, rtol=0)


def _tiny_encoder() -> CLIPVisionModelWithProjection:
    from transformers import CLIPVisionConfig

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        patch_size=16,
        image_size=32,
        projection_dim=16,
    )
    return CLIPVisionModelWithProjection(config).eval()


def test_unconditional_tokens_come_first_and_ignore_the_picture() -> None:
    projection = ImageProjection(
        cross_attention_dim=8, clip_embeddings_dim=16, clip_extra_context_tokens=2
    )
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3), dtype=np.uint8)
    encoder = _tiny_encoder()
    both = encode_image_prompt(encoder, projection, frames, with_unconditional=True)
    cond = encode_image_prompt(encoder, projection, frames, with_unconditional=False)
    assert both.shape == (2, 6, 8)
    assert torch.equal(both[1:], cond)
    zero = projection(torch.zeros(1, 16))
    assert torch.equal(both[0], torch.cat([zero[0]] * 3))
    assert not both.requires_grad


def test_each_pictures_tokens_stay_in_order() -> None:
    projection = ImageProjection(
        cross_attention_dim=8, clip_embeddings_dim=16, clip_extra_context_tokens=2
    )
    frames = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    encoder = _tiny_encoder()
    joined = encode_image_prompt(encoder, projection, frames, with_unconditional=False)
    second = encode_image_prompt(encoder, projection, frames[1:], with_unconditional=False)
    torch.testing.assert_close(joined[:, 2:], second, atol=1e-5, rtol=0)
    assert not torch.allclose(joined[:, :2], second)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((1, 8, 8, 4), np.uint8), np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3))],
)
def test_other_pictures_are_refused(frames: np.ndarray) -> None:
    projection = ImageProjection(cross_attention_dim=8, clip_embeddings_dim=16)
    with pytest.raises(ShapeError, match="uint8"):
        encode_image_prompt(_tiny_encoder(), projection, frames, with_unconditional=False)


def test_position_embedding_distinguishes_token_order() -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "depth": 1, "dim_head": 8, "heads": 2, "embedding_dim": 12}
    tokens = torch.randn(1, 5, 12)
    plain = Resampler(**options, output_dim=8)
    placed = Resampler(**options, output_dim=8, apply_pos_emb=True, max_seq_len=5)
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens), plain(tokens.flip(1)), atol=1e-5, rtol=0)
        assert not torch.allclose(placed(tokens), placed(tokens.flip(1)), atol=1e-3)
