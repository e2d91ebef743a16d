"""What a stage learnt in the layout of MuseV's published weights, for its ordinary loader.

``FOLDER/motion/musev_referencenet`` holds ``unet`` (whole), ``referencenet`` and
``ip_adapter_image_proj.bin``; ``FOLDER/image_encoder`` the encoder that belongs to it;
``FOLDER/controlnet/openpose`` a ControlNet; ``FOLDER/t2i/base`` a base model in diffusers' layout.
Motion weights are laid over whatever base model a run names, so those trained over one base run
over another.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

from musev.config import ScheduleConfig, WeightsConfig, to_plain
from musev.models.published import MOTION_MARKS
from musev.training.networks import CONTROL, LAYER_NORM_EPS, Networks
from musev.weight_parts import IMAGE_PROMPT_FILE

MOTION_NAME = "musev_referencenet"
UNET_CONFIG = {"_class_name": "UNet2DConditionModel"}


def save_published(
    networks: Networks,
    folder: Path,
    *,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    schedule: ScheduleConfig,
    base: bool,
) -> None:
    """Write networks in the published layout.

    Args:
        networks: Of a stage.
        folder: New folder.
        vae: Part of the base model.
        tokenizer: Of the text encoder.
        schedule: The diffusion the networks learnt.
        base: Whether to write the base model too; needless where it did not change.
    """
    motion = folder / "motion" / MOTION_NAME
    _save(networks["unet"], motion / "unet")
    if "referencenet" in networks:
        _save(networks["referencenet"], motion / "referencenet")
    if "image_projection" in networks:
        state = _copies(networks["image_projection"])
        torch.save({"image_proj": state}, motion / IMAGE_PROMPT_FILE)
        _save(networks["image_encoder"], folder / "image_encoder")
    if "controlnet" in networks:
        _save(networks["controlnet"], folder / "controlnet" / CONTROL)
    if base:
        _save_base(networks, folder / "t2i" / "base", vae, tokenizer, schedule)


def _save_base(
    networks: Networks,
    folder: Path,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    schedule: ScheduleConfig,
) -> None:
    from safetensors.torch import save_file

    unet = folder / "unet"
    unet.mkdir(parents=True)
    pictures = {
        key: value
        for key, value in _copies(networks["unet"]).items()
        if not any(mark in key for mark in MOTION_MARKS)
    }
    save_file(pictures, unet / "diffusion_pytorch_model.safetensors")
    width = networks["unet"].config.cross_attention_dim
    _write_json(unet / "config.json", {**UNET_CONFIG, "cross_attention_dim": width})
    _save(networks["text_encoder"], folder / "text_encoder")
    _save(vae, folder / "vae")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "EulerDiscreteScheduler", **to_plain(schedule)}
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)


def published_weights(folder: str | Path, *, t2i: str | Path | None = None) -> WeightsConfig:
    """Settings that load what :func:`save_published` wrote.

    Args:
        folder: The folder.
        t2i: Another base model to run it over; None: the one in the folder.

    Returns:
        The settings; parts that are not there are left out.
    """
    root = Path(folder)
    motion = root / "motion" / MOTION_NAME
    prompt, control = motion / IMAGE_PROMPT_FILE, root / "controlnet" / CONTROL
    return WeightsConfig(
        t2i=str(t2i or root / "t2i" / "base"),
        motion=str(motion),
        motion_name=MOTION_NAME,
        referencenet=str(motion) if (motion / "referencenet").is_dir() else None,
        image_prompt=str(prompt) if prompt.is_file() else None,
        image_encoder=str(root / "image_encoder") if prompt.is_file() else None,
        controlnets={CONTROL: str(control)} if control.is_dir() else {},
        layer_norm_eps=LAYER_NORM_EPS,
    )


def _save(network: nn.Module, folder: Path) -> None:
    network.save_pretrained(folder, safe_serialization=True)


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
