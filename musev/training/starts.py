"""What a run starts from: an earlier stage's export, a base model's folder, a VAE, or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
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

from musev.config import ScheduleConfig, WeightsConfig
from musev.errors import ConfigError
from musev.models.bundle import load_bundle
from musev.models.loading import load_net, load_tokenizer, read_schedule
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
_DIFFUSION = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""Settings of a schedule that decide what a network learns; the others are of sampling."""


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
    schedule: ScheduleConfig | None = None
    """The diffusion its U-Net learnt; None where it has no U-Net, or does not say."""


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
            found, vae, tokenizer, schedule = _read_bundle(folder)
        elif (folder / "unet" / "config.json").exists():
            found, vae, tokenizer, schedule = _read_base(folder, sizes)
        else:
            found, vae, schedule = Networks(), load_vae(folder), None
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
    networks.requires_grad_(True).train()
    learnt = schedule if "unet" in found else None
    return Start(networks, vae, tokenizer, others, missing, learnt)


def refuse_other_schedule(start: Start, schedule: ScheduleConfig) -> None:
    """Refuse to teach a start's U-Net another diffusion than it learnt.

    Args:
        start: Where the networks come from.
        schedule: What they would be trained on.

    Raises:
        ConfigError: If what is predicted, or how much noise a timestep has, differs. How sampling
            picks its timesteps may differ.
    """
    learnt = start.schedule
    if learnt is None or all(getattr(learnt, n) == getattr(schedule, n) for n in _DIFFUSION):
        return
    others = {
        item.name: (getattr(learnt, item.name), getattr(schedule, item.name))
        for item in dataclasses.fields(learnt)
        if getattr(learnt, item.name) != getattr(schedule, item.name)
    }
    differing = ", ".join(f"{n} {a} and not {b}" for n, (a, b) in others.items() if n in _DIFFUSION)
    fitting = " ".join(f"--set schedule.{name}={a}" for name, (a, _) in others.items())
    raise ConfigError(
        f"the start's U-Net learnt another diffusion than this stage trains: {differing}. Give "
        f"{fitting}, or --set run.new_schedule=true to teach it another one on purpose."
    )


_Read = tuple[Networks, AutoencoderKL, CLIPTokenizer, ScheduleConfig | None]


def _read_bundle(folder: Path) -> _Read:
    start = load_bundle(WeightsConfig(bundle=str(folder), layer_norm_eps=LAYER_NORM_EPS))
    return networks_of(start), start.vae, start.tokenizer, start.schedule


def _read_base(folder: Path, sizes: NetworkSizes) -> _Read:
    """A base model's text encoder, VAE, tokenizer and, where its folder says it, schedule; a new
    U-Net with its picture layers.
    """
    unet = build_networks(sizes, ("unet",), vocab_size=0)["unet"]
    unet.load_state_dict(unet.state_dict() | read_t2i_unet(folder / "unet", unet))
    text_encoder = load_net(
        CLIPTextModel, folder / "text_encoder", dtype=torch.float32, where="text_encoder"
    )
    vae = load_net(
        AutoencoderKL, folder / "vae", dtype=torch.float32, where="vae", rename=rename_vae
    )
    found = Networks({"unet": unet, "text_encoder": text_encoder})
    scheduler = folder / "scheduler"
    schedule = read_schedule(scheduler) if scheduler.is_dir() else None
    return found, vae, load_tokenizer(folder / "tokenizer"), schedule


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
