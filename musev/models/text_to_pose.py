"""The network of text to pose: a prompt's words in, the joints of a moving body out.

A diffusion over joints, which are few numbers: a small transformer over one token a frame learns in
minutes what a video network of the same budget does not. What it makes drives a ControlNet.
Two steps, text to pose and pose to video, as in HumanDreamer (arXiv 2503.24026).
"""

# Axes here: B clip, T frame, F feature of a frame, L word, D width of the transformer.
from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from musev.errors import WeightsError
from musev.text_to_pose_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    TextToPoseConfig,
    read_text_to_pose_config,
)

NUM_JOINTS = 18
NUM_FEATURES = 3 * NUM_JOINTS
"""x, y and whether it is seen of every joint of OpenPose's body 18, all about -1 to 1."""
PAD, UNKNOWN = 0, 1
"""Word numbers beside those of the vocabulary."""
_NUM_WAVES = 32
_NOISIER = 5.0
"""Noise over signal, relative to the cosine schedule."""
_LATEST = 1 - 1e-4


class TextToPoseNet(nn.Module):
    """Guesses the clean joints of a window of frames.

    Args:
        config: Sizes.
    """

    def __init__(self, config: TextToPoseConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed_words = nn.Embedding(len(config.words) + 2, width, padding_idx=PAD)
        self.embed_frame = nn.Linear(2 * NUM_FEATURES + 1, width)
        self.embed_first = nn.Linear(NUM_FEATURES, width)
        self.no_first_D = nn.Parameter(torch.zeros(width))
        self.embed_time = nn.Sequential(
            nn.Linear(2 * _NUM_WAVES, width), nn.SiLU(), nn.Linear(width, width)
        )
        layer = nn.TransformerEncoderLayer(
            width,
            config.num_heads,
            dim_feedforward=2 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, NUM_FEATURES)
        # Past the layers: what little moves, a stride say, was lost on the way through them.
        self.keep = nn.Linear(2 * _NUM_WAVES, NUM_FEATURES)
        nn.init.zeros_(self.keep.weight)
        nn.init.zeros_(self.keep.bias)

    def forward(
        self,
        noisy_BTF: Tensor,
        times_B: Tensor,
        words_BL: Tensor,
        *,
        given_BTF: Tensor,
        is_given_BT: Tensor,
        first_BF: Tensor,
        has_first_B: Tensor,
    ) -> Tensor:
        """Guess.

        Args:
            noisy_BTF: Features mixed with noise by :func:`signal_at`.
            times_B: 0 clean to 1 noise alone.
            words_BL: Word numbers, :data:`PAD` behind the last; a prompt left out is one unknown.
            given_BTF: Clean features of frames that are known; what stands elsewhere has no say.
            is_given_BT: bool: which.
            first_BF: The clip's very first frame, so that a long clip does not wander off.
            has_first_B: bool: whether it is known.

        Returns:
            Clean ``_BTF``.
        """
        known_BT1 = is_given_BT[..., None].to(noisy_BTF.dtype)
        frames_BTD = self.embed_frame(
            torch.cat([noisy_BTF, given_BTF * known_BT1, known_BT1], dim=-1)
        )
        waves_BD = _waves(times_B, _NUM_WAVES)
        frames_BTD = frames_BTD + self.embed_time(waves_BD)[:, None]
        frames_BTD = frames_BTD + _positions(frames_BTD)
        words_BLD = self.embed_words(words_BL)
        words_BLD = words_BLD + _positions(words_BLD)
        first_B1D = torch.where(has_first_B[:, None], self.embed_first(first_BF), self.no_first_D)[
            :, None
        ]
        tokens = torch.cat([words_BLD, first_B1D, frames_BTD], dim=1)
        left_out = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        left_out[:, : words_BL.shape[1]] = words_BL == PAD
        tokens = self.layers(tokens, src_key_padding_mask=left_out)
        guess_BTF = self.read(self.norm(tokens[:, -frames_BTD.shape[1] :]))
        return guess_BTF + self.keep(waves_BD)[:, None] * noisy_BTF


def signal_at(times_B: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of signal and noise, for ``signal * clean + spread * noise``.

    Args:
        times_B: 0 to 1.

    Returns:
        Both ``_B``; their squares add up to 1: the cosine schedule of arXiv 2102.09672, made
        noisier as arXiv 2301.11093 does for large pictures. All joints of all frames move together,
        so a motion shows through far more noise than one number would, and is decided there.
    """
    angle_B = torch.atan(_NOISIER * torch.tan(times_B.clamp(max=_LATEST) * (math.pi / 2)))
    return torch.cos(angle_B), torch.sin(angle_B)


def _waves(times_B: Tensor, count: int) -> Tensor:
    rates = torch.exp(torch.linspace(0, math.log(100.0), count, device=times_B.device))
    angles = times_B[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _positions(tokens_BTD: Tensor) -> Tensor:
    """Sines and cosines of the place, as in arXiv 1706.03762."""
    length, width = tokens_BTD.shape[1:]
    places = torch.arange(length, device=tokens_BTD.device, dtype=tokens_BTD.dtype)
    rates = torch.exp(
        torch.arange(0, width, 2, device=tokens_BTD.device) * (-math.log(200.0) / width)
    )
    angles = places[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def save_text_to_pose(net: TextToPoseNet, folder: Path) -> None:
    """Write the network and its configuration.

    Args:
        net: In half precision on disk.
        folder: Made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().contiguous() for name, value in net.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)
    text = json.dumps(dataclasses.asdict(net.config), indent=1)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load_text_to_pose(folder: Path) -> TextToPoseNet:
    """Read what :func:`save_text_to_pose` wrote.

    Args:
        folder: With both files.

    Returns:
        The network in float32, not learning.

    Raises:
        WeightsError: If a file is missing or does not fit.
    """
    net = TextToPoseNet(read_text_to_pose_config(folder))
    try:
        net.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS_FILE).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{folder / WEIGHTS_FILE} does not hold the network that {CONFIG_FILE} describes "
            f"({' '.join(str(error).split())}). Export both anew with training stage text-to-pose."
        ) from error
    return net.requires_grad_(False).eval()
