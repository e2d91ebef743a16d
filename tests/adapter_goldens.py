"""Bundles of the recorded cases with faces, learnt words and LoRA files."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from musev.lora_choice import LoraFile, parse_lora
from musev.models.bundle import ModelBundle
from musev.models.faces import FaceFinder
from musev.models.image_prompt import FaceIdProjection
from musev.models.text_inversion import add_words, read_vectors
from musev.models.unet import UNet3DConditionModel
from tests.goldens import GOLDENS, load_tensors

COMPONENTS = GOLDENS / "pipeline" / "components"


def recorded_loras(case: dict[str, Any]) -> tuple[LoraFile, ...]:
    """The LoRA files of a recorded case, merged as the original does it."""
    found = []
    for file, options in case["components"].get("lora", ()):
        path = COMPONENTS / "lora" / file
        strength = options["strength"] + options.get("strength_offset", 0)
        text = f"{path}:{strength}:{options.get('lora_block_weight', 'ALL')}"
        found.append(LoraFile(parse_lora(text, merge="upstream"), path))
    return tuple(found)


def load_face_unet(name: str) -> UNet3DConditionModel:
    """The recorded U-Net that reads faces: its own weights over those of another."""
    folder = COMPONENTS / f"unet_{name}"
    base = COMPONENTS / json.loads((folder / "base_weights.json").read_text())["base"]
    net = UNet3DConditionModel.from_config(json.loads((folder / "config.json").read_text()))
    file = "diffusion_pytorch_model.safetensors"
    state = load_tensors(base / file) | load_tensors(folder / file)
    net.load_state_dict({key: value.float() for key, value in state.items()}, strict=True)
    return net.float().eval().requires_grad_(False)


@dataclass
class _Face:
    normed_embedding: np.ndarray


def recorded_finder(recorded: dict[str, Any]) -> FaceFinder | None:
    """The stand-in that the cases were recorded with: mean red, green and blue times a matrix."""
    matrix = recorded.get("in.face_matrix")
    if matrix is None:
        return None

    def analyse(picture_YXC: np.ndarray) -> list[Any]:
        mean_rgb = picture_YXC[..., ::-1].reshape(-1, 3).mean(axis=0) / 255
        return [_Face(mean_rgb @ matrix.numpy())]

    return FaceFinder(analyse)


def with_adapters(bundle: ModelBundle, case: dict[str, Any]) -> ModelBundle:
    """Give a bundle what a recorded case has; the bundle itself stays as it is."""
    parts = case["components"]
    if parts.get("ip_adapter_face"):
        folder = COMPONENTS / "ip_adapter_face_proj"
        projection = FaceIdProjection(**json.loads((folder / "config.json").read_text())).eval()
        state = load_tensors(folder / "model.safetensors")
        projection.load_state_dict({key: value.float() for key, value in state.items()})
        bundle = dataclasses.replace(bundle, face_projection=projection)
    if parts.get("textual_inversion"):
        encoder = copy.deepcopy(bundle.text_encoder)
        files = {
            word: read_vectors(COMPONENTS / "textual_inversion" / file)
            for file, word in parts["textual_inversion"]
        }
        words = add_words(encoder, bundle.tokenizer, files, first_only=True)
        bundle = dataclasses.replace(bundle, text_encoder=encoder, words=words)
    if parts.get("lora"):
        bundle = dataclasses.replace(
            bundle,
            unet=copy.deepcopy(bundle.unet),
            text_encoder=copy.deepcopy(bundle.text_encoder),
        )
        bundle.loras.use(recorded_loras(case))
    return bundle
