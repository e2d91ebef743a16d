"""Latents of drawn clips, encoded once: files of many clips on any fsspec store.

Only what is dear is stored: latents. Everything else about a clip is drawn again from its number.
"""

# Axes here: B clip, C channel, T frame, H W latent rows and columns, Y X pixel rows and columns.
from __future__ import annotations

import hashlib
import logging
import uuid
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import torch
from diffusers import AutoencoderKL
from fsspec import AbstractFileSystem
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn import functional as F

from musev.errors import ConfigError
from musev.models.vae import scale_factor
from musev.synthetic.clips import Clip, draw_clip
from musev.training.frames import to_pixels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Which drawn clips: a seed and sizes."""

    seed: int
    num_frames: int
    size_px: int = 128
    fps: float = 8.0
    held_out: bool = False
    references: bool = True
    """Whether the reference portraits are encoded too."""

    def draw(self, index: int, num_frames: int | None = None) -> Clip:
        """Draw clip number ``index``; of its frames only the first ones, if so many are enough."""
        return draw_clip(
            self.seed,
            index,
            held_out=self.held_out,
            height=self.size_px,
            width=self.size_px,
            num_frames=self.num_frames if num_frames is None else num_frames,
            fps=self.fps,
        )

    @property
    def name(self) -> str:
        """Of the files: everything that decides their content."""
        kind = "held" if self.held_out else "train"
        rest = "-ref" if self.references else ""
        return f"{kind}-s{self.seed}-f{self.num_frames}-p{self.size_px}-r{self.fps:g}{rest}"


def mark_of(vae: AutoencoderKL) -> str:
    """Return eight letters that tell one encoder from another; the decoder has no part in them."""
    digest = hashlib.sha256(repr(vae.config.scaling_factor).encode())
    for name, value in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def encode_clip(vae: AutoencoderKL, clip: Clip, *, reference: bool) -> dict[str, Tensor]:
    """Latents of one clip.

    Args:
        vae: In float32.
        clip: Drawn.
        reference: Whether to encode its reference portrait.

    Returns:
        ``latents_CTHW`` and, if wanted, ``reference_CHW`` (float16, scaled), ``person_THW`` (uint8:
        255 where the person fills the latent's square).
    """
    pictures = [clip.frames_TYXC, clip.reference_YXC[None]] if reference else [clip.frames_TYXC]
    frames = to_pixels(np.concatenate(pictures))
    latents = vae.encode(frames.to(vae.device)).latent_dist.mean * vae.config.scaling_factor
    latents = latents.half().cpu()
    mask = torch.from_numpy(clip.mask_TYX[:, None].astype(np.float32))
    num_frames = len(clip.frames_TYXC)
    found = {
        "latents_CTHW": latents[:num_frames].transpose(0, 1).contiguous(),
        "person_THW": F.avg_pool2d(mask, scale_factor(vae))[:, 0].round().to(torch.uint8),
    }
    return found | {"reference_CHW": latents[-1].contiguous()} if reference else found


def write_whole(files: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file that other processes may be writing too, all of them the same bytes.

    Args:
        files: Where.
        path: Seen whole or not at all.
        data: All of it.

    Raises:
        OSError: If the place cannot be written, and nobody else has written the file.
    """
    partial = f"{path}.{uuid.uuid4().hex}.part"
    files.pipe_file(partial, data)
    try:
        files.mv(partial, path)
    except OSError:
        if not files.exists(path):
            raise
        files.rm_file(partial)  # another process was first


class LatentStore:
    """Encoded clips of one source.

    Args:
        uri: Folder; local path or fsspec URI.
        source: Which clips.
        clips_per_file: Clips that are written, or lost by a crash, together.
        vae_mark: Of the VAE that encodes, from :func:`mark_of`.
    """

    def __init__(
        self, uri: str, source: ClipSource, *, clips_per_file: int = 256, vae_mark: str = "vae"
    ) -> None:
        self._files, root = fsspec.core.url_to_fs(uri)
        self.root, self.source = root.rstrip("/"), source
        self.clips_per_file, self.vae_mark = clips_per_file, vae_mark
        self._loaded: dict[str, Tensor] = {}
        self._captions: list[str] = []
        self.num_clips = 0

    def path(self, number: int) -> str:
        """Of file ``number``."""
        name = f"{self.source.name}-{self.vae_mark}-n{self.clips_per_file}"
        return f"{self.root}/{name}-{number:05d}.safetensors"

    def encode(self, vae: AutoencoderKL, number: int) -> bool:
        """Write file ``number`` unless it is there; False if it was."""
        if self._files.exists(self.path(number)):
            return False
        first = number * self.clips_per_file
        rows, captions = [], []
        for index in range(first, first + self.clips_per_file):
            clip = self.source.draw(index)
            captions.append(clip.caption)
            rows.append(encode_clip(vae, clip, reference=self.source.references))
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        stacked["captions"] = torch.tensor(list("\n".join(captions).encode()), dtype=torch.uint8)
        data = save_tensors(stacked)
        self._files.makedirs(self.root, exist_ok=True)
        write_whole(self._files, self.path(number), data)
        return True

    def load(self, num_files: int) -> int:
        """Read the first files into memory.

        Args:
            num_files: How many; others that lie there are not looked at.

        Returns:
            How many clips there are.

        Raises:
            ConfigError: If one is missing.
        """
        parts: list[dict[str, Tensor]] = []
        for number in range(num_files):
            try:
                parts.append(load_tensors(self._files.cat_file(self.path(number))))
            except FileNotFoundError:
                raise ConfigError(
                    f"no encoded clips {self.path(number)}; the folder must be seen by all workers"
                ) from None
        texts = [bytes(part.pop("captions").tolist()).decode() for part in parts]
        self._captions = [caption for text in texts for caption in text.split("\n")]
        self._loaded = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.num_clips = len(self._loaded["latents_CTHW"])
        return self.num_clips

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """Stored tensors of some clips, stacked, float32."""
        return {name: value[indices].float() for name, value in self._loaded.items()}

    def caption(self, index: int) -> str:
        """Caption of a clip."""
        return self._captions[index]


def epoch_order(num_clips: int, *, seed: int, first: int, count: int) -> list[int]:
    """Clip numbers ``first`` to ``first + count`` of an endless series of shuffled rounds.

    Args:
        num_clips: In a round.
        seed: Of the shuffling.
        first: Place in the series.
        count: How many.

    Returns:
        Clip numbers; every round holds each once.
    """
    orders: dict[int, Any] = {}
    found = []
    for place in range(first, first + count):
        round_number, within = divmod(place, num_clips)
        if round_number not in orders:
            rng = np.random.default_rng([seed, round_number])
            orders[round_number] = rng.permutation(num_clips)
        found.append(int(orders[round_number][within]))
    return found
