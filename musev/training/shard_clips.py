"""Clips of a dataset for the diffusion stages: latents of the shards where they fit, else new ones.

Latents that the dataset holds count only if the same encoder made them. All others are encoded when
a clip is first asked for and kept, one small file a clip, for the rounds and runs that follow.
"""

# Axes here: B clip, C channel, T frame, H W latent rows and columns, Y X pixel rows and columns,
# L token, D embedding.
from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence

import fsspec
import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from musev.errors import ConfigError
from musev.models.bundle import ModelBundle
from musev.models.text import encode_prompts
from musev.training.latents import encode_clip, mark_of, write_whole
from musev.training.shard_files import (
    CONTROL,
    FACTS,
    LATENTS,
    MASK,
    REFERENCE,
    VIDEO,
    DatasetClip,
    read_clip,
)
from musev.training.shards import Files, ShardDataset

logger = logging.getLogger(__name__)

VAE_MARK = "vae_mark"
"""In the dataset's card: which encoder made its latents."""
_TEXT = "text_LD"
_PIXELS = (FACTS, VIDEO, REFERENCE, MASK)
HELD_OUT_ONE_IN = 16


def latents_file(bundle: ModelBundle, clip: DatasetClip) -> bytes:
    """Precompute what a dataset can hold of a clip.

    Args:
        bundle: Whose VAE and text encoder.
        clip: Size must be a multiple of the VAE's factor.

    Returns:
        A safetensors file: what :func:`encode_any` gives, and ``text_LD`` (float16).
    """
    text_1LD = encode_prompts(bundle.tokenizer, bundle.text_encoder, [clip.caption])
    tensors = encode_any(bundle.vae, clip)
    return save_tensors(tensors | {_TEXT: text_1LD[0].half().cpu().contiguous()})


def encode_any(vae: AutoencoderKL, clip: DatasetClip) -> dict[str, Tensor]:
    """Latents of a drawn or real clip, as ``encode_clip`` gives them.

    A clip without a mask has no person that counts more; one without a reference picture has no
    ``reference_CHW``.
    """
    if clip.mask_TYX is None:
        clip = dataclasses.replace(clip, mask_TYX=np.zeros(clip.frames_TYXC.shape[:3], np.uint8))
    return encode_clip(vae, clip, reference=clip.reference_YXC is not None)


class ShardClips:
    """Some clips of a dataset, with the face of a ``LatentStore``.

    Args:
        dataset: Where they lie.
        numbers: Which clips of it; number i here is ``numbers[i]`` there.
        vae: Encodes what has no fitting latents; frozen.
        cache_uri: Folder for what it encodes.

    Raises:
        ConfigError: If there is no clip.
    """

    def __init__(
        self, dataset: ShardDataset, numbers: Sequence[int], vae: AutoencoderKL, cache_uri: str
    ) -> None:
        if not numbers:
            raise ConfigError(f"dataset {dataset.uri} has too few clips; give at least 2")
        self._dataset, self._numbers, self._vae = dataset, list(numbers), vae
        self.num_clips = len(self._numbers)
        self._stored = dataset.has(LATENTS) and dataset.card.get(VAE_MARK) == mark_of(vae)
        self._cache, root = fsspec.core.url_to_fs(cache_uri)
        self._cache_root = f"{root.rstrip('/')}/clips-{mark_of(vae)}"
        if not self._stored:
            logger.info("%s: latents are encoded on the way into %s", dataset.uri, cache_uri)

    @property
    def source(self) -> ShardClips:
        """Where pictures come from: itself."""
        return self

    def caption(self, index: int) -> str:
        """Caption of a clip."""
        return self._dataset.caption(self._numbers[index])

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """Latents, person and, where all have one, reference of some clips, stacked, float32.

        A clip without a reference picture of its own has its last frame for one.
        """
        found = self._stored_rows(indices) if self._stored else self._encoded_rows(indices)
        for row in found:
            row.setdefault("reference_CHW", row["latents_CTHW"][:, -1])
        names = ("latents_CTHW", "person_THW", "reference_CHW")
        return {name: torch.stack([row[name] for row in found]).float() for name in names}

    def draw(self, index: int, num_frames: int | None = None) -> DatasetClip:
        """Read a clip's pictures.

        Args:
            index: Which.
            num_frames: How many of its frames are enough; all are read all the same.

        Returns:
            The clip; a missing reference is its last frame.

        Raises:
            ConfigError: If the dataset has no control drawings.
        """
        (files,) = self._dataset.read([self._numbers[index]], (*_PIXELS, CONTROL))
        clip = read_clip(files)
        if clip.reference_YXC is None:
            clip = dataclasses.replace(clip, reference_YXC=clip.frames_TYXC[-1])
        return clip

    def _stored_rows(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        numbers = [self._numbers[index] for index in indices]
        return [load_tensors(files[LATENTS]) for files in self._dataset.read(numbers, (LATENTS,))]

    def _encoded_rows(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        wanted = {index: self._cached(self._numbers[index]) for index in dict.fromkeys(indices)}
        missing = [index for index, row in wanted.items() if row is None]
        read = self._dataset.read([self._numbers[index] for index in missing], _PIXELS)
        for index, files in zip(missing, read, strict=True):
            wanted[index] = self._encode(self._numbers[index], files)
        return [dict(wanted[index] or {}) for index in indices]

    def _path(self, number: int) -> str:
        # The content names the file: a dataset that was made anew never reads stale latents.
        row = self._dataset.row(number)
        name = hashlib.sha256(f"{row['sha256']}:{row['clip_id']}".encode()).hexdigest()[:24]
        return f"{self._cache_root}/{name}.safetensors"

    def _cached(self, number: int) -> dict[str, Tensor] | None:
        try:
            return load_tensors(self._cache.cat_file(self._path(number)))
        except FileNotFoundError:
            return None

    def _encode(self, number: int, files: Files) -> dict[str, Tensor]:
        encoded = encode_any(self._vae, read_clip(files))
        self._cache.makedirs(self._cache_root, exist_ok=True)
        write_whole(self._cache, self._path(number), save_tensors(encoded))
        return encoded


def open_clips(
    uri: str, vae: AutoencoderKL, cache_uri: str, needs: Mapping[str, int | bool]
) -> tuple[ShardClips, ShardClips]:
    """Open a dataset for a diffusion stage; one clip in 16, but at most 64, is kept from training.

    Args:
        uri: The dataset.
        vae: Frozen.
        cache_uri: For latents that have to be encoded.
        needs: ``num_frames`` of a batch and whether it holds ``control``.

    Returns:
        Training and held-out clips.

    Raises:
        ConfigError: If the dataset cannot serve the stage.
    """
    dataset = ShardDataset(uri)
    if dataset.num_clips < 2:
        raise ConfigError(f"dataset {uri} has {dataset.num_clips} clips; give at least 2")
    num_frames = dataset.row(0)["num_frames"]
    if num_frames < needs["num_frames"]:
        raise ConfigError(
            f"dataset {uri} has clips of {num_frames} frames, the stage trains on "
            f"{needs['num_frames']}. Make it with --set num_frames={needs['num_frames']}, or give "
            f"--set batch.num_frames={num_frames}."
        )
    if needs["control"] and not dataset.has(CONTROL):
        raise ConfigError(
            f"dataset {uri} has control drawings of {dataset.count(CONTROL)} of "
            f"{dataset.num_clips} clips; the stage needs them of all. Fill in the table's column "
            "'control', or draw clips."
        )
    kept = set(held_out_numbers(dataset.num_clips))
    training = [number for number in range(dataset.num_clips) if number not in kept]
    parts = (training, sorted(kept))
    first, second = (ShardClips(dataset, part, vae, cache_uri) for part in parts)
    return first, second


def held_out_numbers(num_clips: int, most: int = 64) -> list[int]:
    """Clips kept from training, spread evenly: at least one, at most ``most``, one in 16 else."""
    count = min(most, max(1, num_clips // HELD_OUT_ONE_IN))
    return [place * num_clips // count for place in range(count)]
