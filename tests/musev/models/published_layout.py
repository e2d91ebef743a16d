"""Write the published layout from a small bundle, with the file names and habits of real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from musev.config import WeightsConfig
from musev.models.bundle import ModelBundle
from musev.models.published import MOTION_MARKS

# runwayml/stable-diffusion-v1-5, scheduler/scheduler_config.json, with the spacing spelled out.
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "clip_sample": False,
}
OLD_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
State = dict[str, Tensor]


def write_weights(folder: Path, state: State, *, safetensors: bool, transformers: bool) -> None:
    """Write a weights file under the name its library gives it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.clone().contiguous() for key, value in state.items()}
    if safetensors:
        name = "model" if transformers else "diffusion_pytorch_model"
        save_file(state, folder / f"{name}.safetensors")
    else:
        name = "pytorch_model" if transformers else "diffusion_pytorch_model"
        torch.save(state, folder / f"{name}.bin")


def write_config(folder: Path, config: dict[str, Any], name: str = "config.json") -> None:
    """Write a part's JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config, default=list))


def plain_config(net: nn.Module, *without: str) -> dict[str, Any]:
    """A diffusers network's settings as its own save would write them."""
    config = json.loads(net.to_json_string())
    return {key: value for key, value in config.items() if key not in without}


def write_published(bundle: ModelBundle, root: Path, *, safetensors: bool = False) -> WeightsConfig:
    """Write all parts; the image half of the U-Net is zero in the motion folder.

    So that a loader that forgets to lay the image model over it is found out.
    """
    motion, t2i = root / "motion" / "musev_referencenet", root / "t2i" / "tiny"
    _write_unets(bundle, motion / "unet", t2i / "unet", safetensors=safetensors)
    assert bundle.referencenet is not None
    # Upstream's ReferenceNet2D saves its class defaults (ALGORITHM.md 4.3).
    reference_config = plain_config(bundle.referencenet, "layer_norm_eps")
    write_config(motion / "referencenet", reference_config | {"cross_attention_dim": 1280})
    reference = bundle.referencenet.state_dict()
    write_weights(motion / "referencenet", reference, safetensors=safetensors, transformers=False)
    _write_vae(bundle, root / "vae" / "sd-vae-ft-mse", safetensors=safetensors)
    _write_text(bundle, t2i, safetensors=safetensors)
    write_config(t2i / "scheduler", SCHEDULER, "scheduler_config.json")
    encoder = root / "image_encoder"
    _write_image_prompt(bundle, motion / "ip_adapter_image_proj.bin", encoder, safetensors)
    return WeightsConfig(
        t2i=str(t2i),
        motion=str(motion),
        motion_name="musev_referencenet",
        referencenet=str(motion),
        image_prompt=str(motion / "ip_adapter_image_proj.bin"),
        image_encoder=str(encoder),
        vae=str(root / "vae" / "sd-vae-ft-mse"),
        controlnets=_write_controlnets(bundle, root / "controlnet", safetensors=safetensors),
    )


def _write_controlnets(bundle: ModelBundle, root: Path, *, safetensors: bool) -> dict[str, str]:
    for name, net in bundle.controlnets.items():
        write_config(root / name, plain_config(net))
        write_weights(root / name, net.state_dict(), safetensors=safetensors, transformers=False)
    return {name: str(root / name) for name in bundle.controlnets}


def _write_unets(bundle: ModelBundle, motion: Path, t2i: Path, *, safetensors: bool) -> None:
    # The released flags follow from the name, not from this file: leave them out.
    flags = [key for key in plain_config(bundle.unet) if key.startswith(("need_", "use_"))]
    config = plain_config(bundle.unet, "layer_norm_eps", *flags)
    write_config(motion, config)
    state = bundle.unet.state_dict()
    image_half = {
        key: value for key, value in state.items() if not any(mark in key for mark in MOTION_MARKS)
    }
    zeroed = {key: torch.zeros_like(value) for key, value in image_half.items()}
    write_weights(motion, state | zeroed, safetensors=safetensors, transformers=False)
    write_config(t2i, {"cross_attention_dim": config["cross_attention_dim"]})
    write_weights(t2i, image_half, safetensors=safetensors, transformers=False)


def _write_vae(bundle: ModelBundle, folder: Path, *, safetensors: bool) -> None:
    def old_name(key: str) -> str:
        for new, old in OLD_VAE_NAMES.items():
            key = key.replace(f".{new}.", f".{old}.") if ".attentions." in key else key
        return key

    write_config(folder, plain_config(bundle.vae))
    state = {old_name(key): value for key, value in bundle.vae.state_dict().items()}
    write_weights(folder, state, safetensors=safetensors, transformers=False)


def _write_text(bundle: ModelBundle, t2i: Path, *, safetensors: bool) -> None:
    bundle.tokenizer.save_pretrained(t2i / "tokenizer")
    write_config(t2i / "text_encoder", bundle.text_encoder.config.to_dict())
    state = {
        f"text_model.{key.removeprefix('text_model.')}": value
        for key, value in bundle.text_encoder.state_dict().items()
    }
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    write_weights(t2i / "text_encoder", state, safetensors=safetensors, transformers=True)


def _write_image_prompt(bundle: ModelBundle, file: Path, encoder: Path, safetensors: bool) -> None:
    assert bundle.image_encoder is not None
    assert bundle.image_projection is not None
    torch.save({"image_proj": bundle.image_projection.state_dict()}, file)
    write_config(encoder, bundle.image_encoder.config.to_dict())
    state = bundle.image_encoder.state_dict()
    state["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    write_weights(encoder, state, safetensors=safetensors, transformers=True)
