"""The whole chain of networks against the original's composition (SuperUNet, MODELS.md 3).

Nothing in the product needs a class for it: the chain is four lines.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from musev.models.attachments import ConditionFrames, FramePositions, ImagePrompt
from musev.models.image_prompt import ImageProjection
from musev.models.reference import ReferenceNet2D
from musev.models.tensor_ops import repeat_to_length
from musev.models.unet import UNet3DConditionModel
from tests.goldens import GOLDENS, load_tensors, model_case, model_cases


def load(part: str, make: Any) -> nn.Module:
    folder = GOLDENS / "models"
    net = make(**json.loads((folder / f"{part}.config.json").read_text()))
    weights = load_tensors(folder / f"{part}.weights.safetensors")
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return net


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("super_unet"))
@torch.no_grad()
def test_chain_of_networks_matches_upstream(name: str) -> None:
    case, config, io = model_case(name)
    unet = load(config["unet"], UNet3DConditionModel)
    referencenet = load(config["referencenet"], ReferenceNet2D)
    noisy, text = io["in.unet_sample"], io["in.encoder_hidden_states"]
    batch, num_frames = noisy.shape[0], noisy.shape[2]

    tokens = text
    if "in.vision_clip_emb" in io:
        projection = load(config["ip_adapter_image_proj"], ImageProjection)
        tokens = projection(io["in.vision_clip_emb"].flatten(0, 1)).unflatten(0, (batch, -1))
    latents = io["in.ref_sample"].unflatten(0, (batch, -1)).transpose(1, 2)
    reference_tokens = repeat_to_length(tokens, latents.shape[2], dim=1)
    references = referencenet(latents, reference_tokens, io["in.ref_timestep"])
    image_prompt = ImagePrompt(repeat_to_length(tokens, num_frames, dim=1))
    conditioning = unet.prepare(text, (image_prompt, references))
    call = case["call"]["unet_params"]
    out = unet(
        noisy,
        call["timestep"],
        conditioning,
        (
            ConditionFrames(io["in.unet_vision_conditon_frames_sample_index"]),
            FramePositions(call["sample_frame_rate"]),
        ),
    )
    recorded = next(value for key, value in io.items() if key.startswith("out."))
    torch.testing.assert_close(out, recorded, rtol=0, atol=5e-5)
