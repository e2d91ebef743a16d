"""What a clip is conditioned on: faces and learnt words reach the network, or are told why not."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from musev.conditions import ClipMedia, encode_conditions, fit_media
from musev.config import ClipRequest, FirstFrameConfig, GuidanceConfig, SamplingConfig
from musev.errors import RequestError
from musev.models.bundle import ModelBundle
from musev.models.faces import FaceFinder
from musev.models.image_prompt import FaceIdProjection
from musev.models.text_inversion import add_words
from musev.models.tiny import TOKEN_WIDTH, make_tiny_bundle, randomize
from musev.models.unet import UNet3DConditionModel
from musev.parts import RecentParts
from musev.window_denoiser import ClipConditions

FACE_WIDTH = 6


class Face:
    """A face whose embedding is how red, green and blue its picture is, twice."""

    def __init__(self, picture_YXC: np.ndarray) -> None:
        mean = picture_YXC.reshape(-1, 3).mean(axis=0) / 255
        self.normed_embedding = np.concatenate([mean[::-1], mean[::-1]])


def finds_faces(picture_YXC: np.ndarray) -> list[Any]:
    return [Face(picture_YXC)] if picture_YXC.any() else []


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    """Random networks that read faces."""
    plain = make_tiny_bundle(0)
    config = {**plain.unet.config, "need_t2i_ip_adapter_face": True}
    config.pop("_use_default_values", None)  # else diffusers takes the default after all
    unet = randomize(UNet3DConditionModel.from_config(config), seed=0, prefix="unet")
    projection = FaceIdProjection(cross_attention_dim=TOKEN_WIDTH, id_embeddings_dim=FACE_WIDTH)
    return dataclasses.replace(
        plain,
        unet=unet,
        face_projection=randomize(projection, seed=0, prefix="face"),
        face_finder=FaceFinder(finds_faces),
    )


def request(**changes: Any) -> ClipRequest:
    values: dict[str, Any] = {
        "request_id": "r",
        "prompt": "a coat",
        "num_frames": 3,
        "fps": 8,
        "width": 64,
        "height": 64,
        "seed": 1,
        "profile": "test",
        "sampling": SamplingConfig(
            first_frame=FirstFrameConfig(origin="noise"), guidance=GuidanceConfig(scale=2.0)
        ),
    }
    return ClipRequest(**(values | changes))


def conditions_of(bundle: ModelBundle, asked: ClipRequest, **pictures: Any) -> ClipConditions:
    with torch.inference_mode():
        return encode_conditions(bundle, asked, fit_media(asked, ClipMedia(**pictures)))


def branches(conditions: ClipConditions) -> set[int]:
    """Tokens of the extra branches of every layer."""
    return {
        extra.key_value.key_BLC.shape[1]
        for layer in conditions.network.layers.values()
        for extra in layer.extra
    }


def red(value: int = 200) -> np.ndarray:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[..., 0] = value
    return picture


def test_a_face_is_the_same_found_or_given(bundle: ModelBundle) -> None:
    found = conditions_of(bundle, request(), face_image=red())
    assert branches(found) == {4}
    embedding = (200 / 255, 0, 0) * 2
    given = conditions_of(bundle, request(face_embedding=embedding))
    two = conditions_of(bundle, request(face_embedding=embedding * 2))
    assert branches(two) == {8}
    name = next(iter(found.network.layers))
    for ours, theirs in zip(
        found.network.layers[name].extra, given.network.layers[name].extra, strict=True
    ):
        torch.testing.assert_close(ours.key_value.key_BLC, theirs.key_value.key_BLC)
    assert branches(conditions_of(bundle, request())) == set()


def test_a_scale_of_zero_leaves_faces_out(bundle: ModelBundle) -> None:
    sampling = dataclasses.replace(request().sampling, ip_adapter_face_scale=0.0)
    assert branches(conditions_of(bundle, request(sampling=sampling), face_image=red())) == set()


def test_a_face_is_looked_for_once(bundle: ModelBundle) -> None:
    calls = []

    def counted(picture_YXC: np.ndarray) -> list[Any]:
        calls.append(1)
        return finds_faces(picture_YXC)

    counting = dataclasses.replace(bundle, face_finder=FaceFinder(counted))
    parts = RecentParts()
    for seed in (1, 2):
        asked = request(seed=seed)
        media = fit_media(asked, ClipMedia(face_image=red()))
        with torch.inference_mode():
            encode_conditions(counting, asked, media, parts=parts)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("changes", "picture", "without", "phrase"),
    [
        ({}, np.zeros((40, 40, 3), np.uint8), (), "no face was found in face_image"),
        ({}, red(), ("face_finder",), "weights.face_models"),
        ({"face_image": "a.png"}, red(), ("face_projection",), "hold no face projection"),
        ({"face_embedding": (1.0,) * 6}, None, ("face_projection",), "Name a FaceID file"),
        ({"face_embedding": (1.0,) * 7}, None, (), "has 7 numbers, but an embedding has 6"),
    ],
)
def test_what_keeps_a_face_out_is_told(
    bundle: ModelBundle,
    changes: dict[str, Any],
    picture: np.ndarray | None,
    without: tuple[str, ...],
    phrase: str,
) -> None:
    bare = dataclasses.replace(bundle, **dict.fromkeys(without))
    with pytest.raises(RequestError, match=phrase):
        conditions_of(bare, request(**changes), face_image=picture)


def test_learnt_words_reach_the_text(bundle: ModelBundle) -> None:
    encoder = copy.deepcopy(bundle.text_encoder)
    vectors = torch.randn(2, TOKEN_WIDTH, generator=torch.Generator().manual_seed(0))
    words = add_words(encoder, bundle.tokenizer, {"badword": vectors})
    learnt = dataclasses.replace(bundle, text_encoder=encoder, words=words)
    asked = request(negative_prompt="badword, ugly")
    plain, found = (conditions_of(each, asked).text_BLD for each in (bundle, learnt))
    assert torch.equal(plain[1], found[1])  # the positive prompt names none
    assert not torch.allclose(plain[0], found[0])


def test_a_bare_unconditional_half_sees_no_picture(bundle: ModelBundle) -> None:
    """Neither reference nor image prompt nor face; the other half is told the same as ever."""
    bare = dataclasses.replace(
        request().sampling, guidance=GuidanceConfig(scale=2.0, unconditional="bare")
    )
    pictures = {"reference_image": red(), "ip_adapter_image": red(), "face_image": red()}
    usual = conditions_of(bundle, request(negative_prompt="fog"), **pictures)
    found = conditions_of(bundle, request(negative_prompt="fog", sampling=bare), **pictures)
    assert usual.bare is None
    assert found.bare is not None
    assert all(not each.extra and each.reference is None for each in found.bare.layers.values())
    assert not found.bare.references
    assert found.network.references
    torch.testing.assert_close(found.text_BLD, usual.text_BLD)

    halves = [[of.half(index).network for index in range(2)] for of in (usual, found)]
    noisy = torch.randn((1, 4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (fogged, shown), (alone, same) = (
            [bundle.unet(noisy, 500.0, network) for network in pair] for pair in halves
        )
    torch.testing.assert_close(same, shown, atol=5e-5, rtol=0)
    assert not torch.allclose(alone, fogged, atol=1e-3)


def test_without_pictures_both_halves_are_computed_together(bundle: ModelBundle) -> None:
    guidance = GuidanceConfig(scale=2.0, unconditional="bare")
    bare = dataclasses.replace(request().sampling, guidance=guidance)
    found, usual = (conditions_of(bundle, request(**each)) for each in ({"sampling": bare}, {}))
    assert found.bare is None
    assert found.network.batch == usual.network.batch == 2
