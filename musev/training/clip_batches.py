"""Batches of clips for the diffusion stages: a pure function of stage, seed, step and worker."""

# Axes here: B clip, C channel, T frame, H W latent rows and columns, Y X pixel rows and columns,
# L token.
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from musev.synthetic.clips import Clip
from musev.training.corruption import CorruptionConfig, corrupt, dropped_entries
from musev.training.latents import LatentStore, epoch_order
from musev.training.loop import seed_of
from musev.training.optimizer import Batch
from musev.training.shard_clips import ShardClips
from musev.training.shard_files import DatasetClip
from musev.training.stages import BatchConfig
from musev.training.vocabulary import token_ids

# CLIP's own: openai/clip preprocessing, also transformers' OPENAI_CLIP_MEAN and _STD.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OWN_FRAME_SHARE = 0.4
"""Share of clips whose reference is their own first frame: what is given when nothing else is."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in a run a batch belongs."""

    step: int
    micro: int = 0
    accumulate: int = 1
    worker: int = 0
    num_workers: int = 1

    @property
    def number(self) -> int:
        """Running number over steps, accumulation and workers."""
        return (self.step * self.accumulate + self.micro) * self.num_workers + self.worker


@dataclass
class ClipBatches:
    """Makes batches from encoded clips.

    Args:
        store: Encoded clips; those of several frames also serve as single frames.
        config: What a batch holds.
        corruption: What chance does to it.
        tokenizer: Of the text encoder.
        seed: Of the run.
        image_prompt_px: Side of the image encoder's input.
        num_timesteps: Of the diffusion.
    """

    store: LatentStore | ShardClips
    config: BatchConfig
    corruption: CorruptionConfig
    tokenizer: CLIPTokenizer
    seed: int
    image_prompt_px: int = 64
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        self._empty_ids_L = token_ids(self.tokenizer, [""])[0]

    def at(self, position: Position) -> Batch:
        """Return the corrupted batch of a position; the same position gives the same bits.

        Args:
            position: Step, accumulation and worker.

        Returns:
            A batch for :class:`~musev.training.diffusion.DiffusionTraining`.
        """
        config, step = self.config, position.step
        as_images = config.num_frames == 1 or (
            config.image_every is not None and step % config.image_every == config.image_every - 1
        )
        most = max(config.num_clips, config.images_then)
        num_clips = config.num_clips
        if as_images and config.num_frames > 1:
            num_clips = config.images_then
        indices = epoch_order(
            self.store.num_clips, seed=self.seed, first=position.number * most, count=num_clips
        )
        rng = np.random.default_rng([self.seed, 1, position.number])
        step_seed = seed_of(self.seed, "step", step)
        batch = self._read(
            indices,
            as_images=as_images,
            rng=rng,
            unwanted=dropped_entries(self.corruption, step_seed=step_seed),
        )
        return corrupt(
            batch,
            self.corruption,
            seed=seed_of(self.seed, "corrupt", position.number),
            step_seed=step_seed,
            empty_ids_L=self._empty_ids_L,
            num_timesteps=self.num_timesteps,
        )

    def _read(
        self,
        indices: list[int],
        *,
        as_images: bool,
        rng: np.random.Generator,
        unwanted: frozenset[str] = frozenset(),
    ) -> Batch:
        config, rows = self.config, self.store.rows(indices)
        latents, person = rows["latents_CTHW"], rows["person_THW"] / 255
        num_stored = latents.shape[2]
        length = 1 if as_images else config.num_frames
        starts = [int(rng.integers(num_stored - length + 1)) for _ in indices]
        spans = [slice(start, start + length) for start in starts]
        batch = {
            "latents_BCTHW": torch.stack([x[:, s] for x, s in zip(latents, spans, strict=True)]),
            "person_BTHW": torch.stack([x[s] for x, s in zip(person, spans, strict=True)]),
            "ids_BL": token_ids(self.tokenizer, [self.store.caption(i) for i in indices]),
        }
        with_control = config.control and "control_BTCYX" not in unwanted
        with_picture = config.reference and "image_prompt_BCYX" not in unwanted
        clips: list[Clip | DatasetClip] = []
        if with_control or with_picture:  # all else is stored
            lengths = [span.stop if with_control else 1 for span in spans]
            clips = [self.store.source.draw(*which) for which in zip(indices, lengths, strict=True)]
        if with_control:
            control = [_control(clip, span) for clip, span in zip(clips, spans, strict=True)]
            batch["control_BTCYX"] = torch.stack(control).float() / 255
        if with_picture:
            own = [bool(rng.random() < OWN_FRAME_SHARE) for _ in indices]
            batch["reference_BCTHW"] = torch.stack(
                [
                    (latents[b, :, 0] if own[b] else rows["reference_CHW"][b])[:, None]
                    for b in range(len(indices))
                ]
            )
            pictures = [
                clip.frames_TYXC[0] if first else clip.reference_YXC
                for clip, first in zip(clips, own, strict=True)
            ]
            batch["image_prompt_BCYX"] = image_prompt_pixels(pictures, self.image_prompt_px)
        return batch


def _control(clip: Clip | DatasetClip, span: slice) -> Tensor:
    drawings_TYXC = clip.control_TYXC
    assert drawings_TYXC is not None, "a dataset without them is refused when it is opened"
    return torch.from_numpy(drawings_TYXC[span].copy()).permute(0, 3, 1, 2)


def image_prompt_pixels(pictures: list[np.ndarray], size_px: int) -> Tensor:
    """Prepare pictures as ``encode_image_prompt`` does: PIL's bicubic resize, CLIP's norm.

    Args:
        pictures: uint8 ``YXC``; of oblong ones the middle square.
        size_px: Side wanted.

    Returns:
        ``_BCYX`` float32.
    """
    small = [
        np.asarray(
            Image.fromarray(_middle_square(picture)).resize(
                (size_px, size_px), Image.Resampling.BICUBIC
            )
        )
        for picture in pictures
    ]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def _middle_square(picture_YXC: np.ndarray) -> np.ndarray:
    height, width = picture_YXC.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture_YXC[top : top + side, left : left + side]
