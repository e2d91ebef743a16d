"""What a run starts from: an earlier stage's export, a base model's folder, a VAE, or nothing."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from musev.config import WeightsConfig
from musev.errors import ConfigError
from musev.models.bundle import load_bundle
from musev.models.loading import load_net, load_tokenizer
from musev.models.published import read_t2i_unet
from musev.synthetic.captions import VOCABULARY
from musev.training.networks import (
    LAYER_NORM_EPS,
    Networks,
    NetworkSizes,
    build_networks,
    networks_of,
)
from musev.training.vocabulary import make_word_tokenizer
from musev.weight_parts import BUNDLE_FILE
from musev.weights import rename_vae

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Start:
    """Networks that can learn, and what stays as it is."""

    networks: Networks
    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    others: Networks
    """Networks of the start that the stage does not use, handed on as they are."""
    new: tuple[str, ...] = ()
    """Networks the start lacked: they know nothing, or what the U-Net's way down knows."""


def read_start(
    init: str, sizes: NetworkSizes, parts: tuple[str, ...], *, renew: tuple[str, ...] = ()
) -> Start:
    """Read the networks of a start, and build the parts it lacks.

    A new ControlNet or ReferenceNet starts as a copy of the U-Net's way down, wherever names and
    shapes agree (arXiv 2302.05543).

    Args:
        init: Folder or fsspec URI: a bundle (an export's ``bundle``), a Stable Diffusion 1.5 folder
            in diffusers' layout, or a VAE.
        sizes: Of the parts that are built.
        parts: Names of the networks the stage needs.
        renew: Networks to build anew although the start has them.

    Returns:
        The start, networks in training mode and trainable.

    Raises:
        ConfigError: If a network is to be built anew that the stage does not use.
    """
    if unused := sorted(set(renew) - set(parts)):
        raise ConfigError(
            f"run.renew names {', '.join(unused)}, which this stage does not use; it uses "
            f"{', '.join(parts)}"
        )
    with local_folder(init) as folder:
        if (folder / BUNDLE_FILE).exists():
            found, vae, tokenizer = _read_bundle(folder)
        elif (folder / "unet" / "config.json").exists():
            found, vae, tokenizer = _read_base(folder, sizes)
        else:
            found, vae = Networks(), load_vae(folder)
            tokenizer = make_word_tokenizer([*VOCABULARY, ","], max_length=PROMPT_TOKENS)
    for name in renew:
        if name in found:
            del found[name]
    missing = tuple(name for name in parts if name not in found)
    new = build_networks(sizes, missing, vocab_size=len(tokenizer))
    if missing:
        logger.info("new networks: %s", ", ".join(missing))
    for name in ("referencenet", "controlnet"):
        if name in new and "unet" in found:
            copied = copy_shared(found["unet"], new[name])
            logger.info("%s starts from %d weights of the U-Net", name, copied)
    networks = Networks({name: (found if name in found else new)[name] for name in parts})
    others = Networks({name: net for name, net in found.items() if name not in parts})
    return Start(networks.requires_grad_(True).train(), vae, tokenizer, others, missing)


def _read_bundle(folder: Path) -> tuple[Networks, AutoencoderKL, CLIPTokenizer]:
    start = load_bundle(WeightsConfig(bundle=str(folder), layer_norm_eps=LAYER_NORM_EPS))
    return networks_of(start), start.vae, start.tokenizer


def _read_base(folder: Path, sizes: NetworkSizes) -> tuple[Networks, AutoencoderKL, CLIPTokenizer]:
    """A base model's text encoder, VAE and tokenizer; a new U-Net with its picture layers."""
    unet = build_networks(sizes, ("unet",), vocab_size=0)["unet"]
    unet.load_state_dict(unet.state_dict() | read_t2i_unet(folder / "unet", unet))
    text_encoder = load_net(
        CLIPTextModel, folder / "text_encoder", dtype=torch.float32, where="text_encoder"
    )
    vae = load_net(
        AutoencoderKL, folder / "vae", dtype=torch.float32, where="vae", rename=rename_vae
    )
    found = Networks({"unet": unet, "text_encoder": text_encoder})
    return found, vae, load_tokenizer(folder / "tokenizer")


@torch.no_grad()
def copy_shared(source: nn.Module, target: nn.Module) -> int:
    """Copy every weight that both networks have under one name and in one shape.

    Args:
        source: Where from; unchanged.
        target: Where to.

    Returns:
        How many weights were copied.
    """
    weights = source.state_dict()
    copied = 0
    for name, parameter in target.named_parameters():
        if name in weights and weights[name].shape == parameter.shape:
            parameter.copy_(weights[name])
            copied += 1
    return copied


def load_vae(folder: str | Path) -> AutoencoderKL:
    """Load a VAE for training from its folder, the folder above it, or a bundle."""
    root = Path(folder)
    inner = root / "vae" if (root / "vae" / "config.json").exists() else root
    if not (inner / "config.json").exists():
        raise ConfigError(f"no VAE in {folder}: neither config.json nor vae/config.json")
    return AutoencoderKL.from_pretrained(inner, local_files_only=True).requires_grad_(True)


@contextlib.contextmanager
def local_folder(place: str) -> Iterator[Path]:
    """Give a folder on any store as a local one, for as long as the block runs."""
    if "://" not in place:
        yield Path(place)
        return
    files, root = fsspec.core.url_to_fs(place)
    with tempfile.TemporaryDirectory(prefix="musev-start-") as scratch:
        for path in files.find(root):
            target = Path(scratch) / path.removeprefix(root.rstrip("/")).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(target))
        yield Path(scratch)
