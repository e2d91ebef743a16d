"""Published IP-Adapter files of every kind, written in their layout and loaded into a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musev.config import WeightsConfig
from musev.errors import WeightsError
from musev.models.bundle import load_bundle, save_bundle
from musev.models.image_prompt import (
    FaceIdProjection,
    ImageProjection,
    ProjPlusModel,
    Resampler,
    encode_image_prompt,
)
from musev.models.ip_adapter import load_face_projection, load_image_projection, read_adapter
from musev.models.loading import build_empty
from musev.models.tiny import EMBEDDING_WIDTH, TOKEN_WIDTH, make_tiny_bundle, randomize
from musev.weight_parts import digest_weights, image_prompt_wins
from musev.weights import rename_ip_adapter
from tests.goldens import GOLDENS, require_goldens
from tests.musev.models.published_layout import write_published

FACE_WIDTH = 24
ENCODER_WIDTH = 32  # of the tiny image encoder's layers
State = dict[str, Tensor]


def resampler() -> Resampler:
    net = Resampler(
        dim=64, depth=2, heads=1, num_queries=5, embedding_dim=ENCODER_WIDTH, output_dim=TOKEN_WIDTH
    )
    return randomize(net, seed=1, prefix="resampler")


def face_projection() -> FaceIdProjection:
    net = FaceIdProjection(cross_attention_dim=TOKEN_WIDTH, id_embeddings_dim=FACE_WIDTH)
    return randomize(net, seed=1, prefix="face")


def attention_of(unet_names: list[str], value: float) -> State:
    """Numbered attention weights as a file has them, all of one value."""
    layers = [name for name in unet_names if name.endswith("attn2.to_k_ip.weight")]
    shapes = {}
    for number in range(len(layers)):
        for leaf in ("to_k_ip.weight", "to_v_ip.weight"):
            shapes[f"{2 * number + 1}.{leaf}"] = None
    renamed = rename_ip_adapter(shapes, unet_names)
    unet = make_tiny_bundle(5).unet.state_dict()
    return {key: torch.full_like(unet[name], value) for key, name in renamed.items()}


def published(tmp_path: Path, **files: Any) -> WeightsConfig:
    return dataclasses.replace(write_published(make_tiny_bundle(5), tmp_path), **files)


def write_adapter(file: Path, net: Any, value: float, **more: Tensor) -> str:
    names = list(make_tiny_bundle(5).unet.state_dict())
    groups = {"image_proj": net.state_dict(), "ip_adapter": attention_of(names, value) | more}
    torch.save(groups, file)
    return str(file)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("ip_adapter_image_proj", ImageProjection, {"cross_attention_dim": 768}),
        ("ip_adapter_plus_resampler", Resampler, None),
        ("ip_adapter_faceid_mlp_proj", FaceIdProjection, None),
    ],
)
def test_sizes_of_published_files_are_read_off_their_weights(
    name: str, kind: type, changes: dict[str, int] | None
) -> None:
    require_goldens()
    told = json.loads((GOLDENS / "fullsize" / f"{name}.json").read_text())
    state = {key: torch.zeros(shape) for key, shape in told["tensors"].items()}
    groups = {"image_proj": state, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(1)}}
    load = load_face_projection if kind is FaceIdProjection else load_image_projection
    net = load(Path("file.bin"), groups, dtype=torch.float32)
    assert isinstance(net, kind)
    expected = build_empty(kind, told["constructor"] | (changes or {}), where="x").config
    assert {key: net.config[key] for key in told["constructor"]} == {
        key: expected[key] for key in told["constructor"]
    }


def test_plus_tokens_come_from_all_of_the_picture(tmp_path: Path) -> None:
    net = resampler()
    file = write_adapter(tmp_path / "ip-adapter-plus_sd15.bin", net, 0.5)
    config = published(tmp_path / "published", image_prompt=file)
    bundle = load_bundle(config)
    assert isinstance(bundle.image_projection, Resampler)
    weights = bundle.unet.state_dict()
    taken = [value for key, value in weights.items() if key.endswith("attn2.to_k_ip.weight")]
    assert taken
    assert all(torch.equal(value, torch.full_like(value, 0.5)) for value in taken)
    assert "image_prompt_attention=file" in digest_weights(config)["settings"]

    picture_TYXC = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8)
    tokens_BLD = encode_image_prompt(
        bundle.image_encoder, bundle.image_projection, picture_TYXC, with_unconditional=True
    )
    assert tokens_BLD.shape == (2, 2 * 5, TOKEN_WIDTH)
    hidden = torch.zeros(1, 50, ENCODER_WIDTH)
    torch.testing.assert_close(tokens_BLD[0, :5], net(hidden)[0])

    save_bundle(bundle, tmp_path / "own")
    again = load_bundle(WeightsConfig(bundle=str(tmp_path / "own")))
    assert isinstance(again.image_projection, Resampler)


def test_the_unets_own_attention_wins_with_musevs_projection(tmp_path: Path) -> None:
    net = ImageProjection(cross_attention_dim=TOKEN_WIDTH, clip_embeddings_dim=EMBEDDING_WIDTH)
    own = published(tmp_path / "published")
    assert own.image_prompt is not None
    file = write_adapter(Path(own.image_prompt), net, 0.5)
    assert not image_prompt_wins(own)
    plain = load_bundle(own).unet.state_dict()
    key = next(name for name in plain if name.endswith("attn2.to_k_ip.weight"))
    assert plain[key].std() > 0
    forced = dataclasses.replace(own, image_prompt=file, image_prompt_attention="file")
    assert load_bundle(forced).unet.state_dict()[key].std() == 0
    assert digest_weights(own)["settings"] != digest_weights(forced)["settings"]
    other = dataclasses.replace(own, image_prompt="models/ip-adapter_sd15.bin")
    assert image_prompt_wins(other)
    assert not image_prompt_wins(dataclasses.replace(other, image_prompt_attention="unet"))


def test_faces_get_weights_of_their_own(tmp_path: Path) -> None:
    lora = {"0.to_q_lora.down.weight": torch.zeros(1, 1)}
    file = write_adapter(tmp_path / "ip-adapter-faceid_sd15.bin", face_projection(), 0.25, **lora)
    config = published(tmp_path / "published", face=file)
    bundle = load_bundle(config)
    assert bundle.takes_faces
    weights = bundle.unet.state_dict()
    faces = {key: value for key, value in weights.items() if "ip_adapter_face_to_" in key}
    plain = load_bundle(dataclasses.replace(config, face=None))
    assert not plain.takes_faces
    own = plain.unet.state_dict()
    assert set(weights) - set(own) == set(faces)
    assert all(torch.equal(weights[key], own[key]) for key in own)
    assert all(torch.equal(value, torch.full_like(value, 0.25)) for value in faces.values())
    assert "face" in digest_weights(config)
    save_bundle(bundle, tmp_path / "own")
    assert load_bundle(WeightsConfig(bundle=str(tmp_path / "own"))).takes_faces


@pytest.mark.parametrize(
    ("where", "state", "phrase"),
    [
        ("image_prompt", face_projection().state_dict(), "reads faces.*weights.face"),
        ("image_prompt", {"facein.x": torch.zeros(1)}, "FaceIn was never released"),
        ("face", resampler().state_dict(), "unknown kind"),
        ("face", {"perceiver_resampler.proj_in.weight": torch.zeros(1)}, "FaceID-plus"),
    ],
)
def test_other_kinds_are_refused_by_name(
    tmp_path: Path, where: str, state: State, phrase: str
) -> None:
    file = tmp_path / "adapter.bin"
    torch.save({"image_proj": state, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(1)}}, file)
    load = load_image_projection if where == "image_prompt" else load_face_projection
    with pytest.raises(WeightsError, match=phrase):
        load(file, read_adapter(file, where), dtype=torch.float32)
    assert ProjPlusModel.__doc__  # the network exists; the original's loader never builds it


def test_files_without_a_projection_are_refused(tmp_path: Path) -> None:
    torch.save({"ip_adapter": {"1.to_k_ip.weight": torch.zeros(1)}}, tmp_path / "a.bin")
    with pytest.raises(WeightsError, match="no part image_proj"):
        read_adapter(tmp_path / "a.bin", "image_prompt")
    torch.save({"image_proj": face_projection().state_dict()}, tmp_path / "b.bin")
    groups = read_adapter(tmp_path / "b.bin", "face")
    with pytest.raises(WeightsError, match="could not read faces"):
        load_face_projection(tmp_path / "b.bin", groups, dtype=torch.float32)
