"""Poses from a prompt: which joints a body shows in every frame of a clip of any length.

Windows of frames are made one after the other, each going on from the last frames of the one before
with the clip's first frame in view; two or three numbers a joint cost next to nothing, so there is
nothing to spread over a cluster within a clip.
"""

# Axes here: B clip, T frame, F feature of a frame, K joint, L word.
from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from musev.models.text_to_pose import (
    NUM_FEATURES,
    NUM_JOINTS,
    PAD,
    UNKNOWN,
    TextToPoseNet,
    signal_at,
)
from musev.text_to_pose_config import GUIDANCE, NUM_STEPS, TextToPoseConfig

TIMES_POWER = 2.0
"""Times are evenly spread numbers to this power: small fast motions are decided at little noise."""
_FADING_FRAMES = 8
_REACH = (-0.5, 1.5)
"""Joints outside the picture are kept so far, in picture sizes."""


def word_numbers(config: TextToPoseConfig, prompts: Sequence[str]) -> Tensor:
    """Number the words of prompts.

    Args:
        config: Holds the vocabulary.
        prompts: Any; see :meth:`TextToPoseConfig.heard` for long ones.

    Returns:
        ``_BL`` int64; a prompt without words is one unknown word.
    """
    numbers = {word: place for place, word in enumerate(config.words, start=2)}
    rows = [
        [numbers.get(word, UNKNOWN) for word in config.heard(prompt)] or [UNKNOWN]
        for prompt in prompts
    ]
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def to_features(points_TK3: np.ndarray) -> Tensor:
    """Joints as the network wants them.

    Args:
        points_TK3: Any leading axes; x and y as shares of the picture, and seen (1) or not (0).

    Returns:
        float32, last two axes joined to F.
    """
    points = np.asarray(points_TK3, np.float32)
    places = np.clip(points[..., :2], *_REACH) * 4 - 2
    features = np.concatenate([places, points[..., 2:] * 2 - 1], axis=-1)
    return torch.from_numpy(features.reshape(*features.shape[:-2], NUM_FEATURES))


def from_features(features_TF: Tensor) -> np.ndarray:
    """The inverse of :func:`to_features`: ``_TK3``, the last number between 0 and 1."""
    features = features_TF.numpy().reshape(*features_TF.shape[:-1], NUM_JOINTS, 3)
    seen = np.clip((features[..., 2:] + 1) / 2, 0, 1)
    return np.concatenate([(features[..., :2] + 2) / 4, seen], axis=-1)


@torch.inference_mode()
def sample_window(
    net: TextToPoseNet,
    words_BL: Tensor,
    noise_BTF: Tensor,
    *,
    given_BTF: Tensor | None = None,
    first_BF: Tensor | None = None,
    num_steps: int = NUM_STEPS,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Make one window of frames by DDIM (arXiv 2010.02502) with classifier-free guidance.

    Args:
        net: Guesses.
        words_BL: From :func:`word_numbers`, on the device of the network.
        noise_BTF: Of the window; on the device of the network, as all that is given.
        given_BTF: Frames that the window begins with, clean, where it goes on.
        first_BF: The clip's first frame, where that is not one of them.
        num_steps: Guesses.
        guidance: How much more than the prompt says; 1 as it says.

    Returns:
        Clean ``_BTF``; given frames come back as they are.
    """
    (num_clips, num_frames), device = noise_BTF.shape[:2], noise_BTF.device
    num_given = 0 if given_BTF is None else given_BTF.shape[1]
    given = torch.zeros_like(noise_BTF)
    if given_BTF is not None:
        given[:, :num_given] = given_BTF
    known = {
        "given_BTF": given,
        "is_given_BT": (torch.arange(num_frames, device=device) < num_given).expand(num_clips, -1),
        "first_BF": given.new_zeros(num_clips, NUM_FEATURES) if first_BF is None else first_BF,
        "has_first_B": torch.full((num_clips,), first_BF is not None, device=device),
    }
    nothing_BL = torch.full((num_clips, 1), UNKNOWN, device=device)
    times = torch.linspace(1, 0, num_steps + 1, device=device) ** TIMES_POWER
    noisy, clean = noise_BTF, noise_BTF
    for now, then in itertools.pairwise(times):
        times_B = now.expand(num_clips)
        clean = net(noisy, times_B, words_BL, **known)
        if guidance != 1:
            bare = net(noisy, times_B, nothing_BL, **known)
            clean = bare + guidance * (clean - bare)
        clean[:, :num_given] = given[:, :num_given]
        (signal, spread), (next_signal, next_spread) = signal_at(now), signal_at(then)
        noisy = next_signal * clean + next_spread * (noisy - signal * clean) / spread
    return _joined(clean, num_given) if num_given > 1 else clean


def _joined(made_BTF: Tensor, num_given: int) -> Tensor:
    """Let the step from the last given frame to the first new one be as its neighbours are.

    What it was off by fades out over the next frames.
    """
    last, first = num_given - 1, num_given
    steps = made_BTF[:, 1:] - made_BTF[:, :-1]
    usual_BF = (steps[:, last - 1] + steps[:, first]) / 2
    off_B1F = (steps[:, last] - usual_BF)[:, None]
    num_new = made_BTF.shape[1] - num_given
    fading_T = (1 - torch.arange(num_new, device=made_BTF.device) / _FADING_FRAMES).clamp(min=0)
    new = made_BTF[:, first:] - off_B1F * fading_T[:, None]
    return torch.cat([made_BTF[:, :first], new], dim=1)


def make_poses(
    net: TextToPoseNet,
    prompt: str,
    *,
    num_frames: int,
    fps: float,
    seed: int,
    num_steps: int = NUM_STEPS,
    guidance: float = GUIDANCE,
) -> np.ndarray:
    """Make the joints of a clip.

    Args:
        net: Of text to pose.
        prompt: What the person does, and how much of it is in the picture.
        num_frames: Any length.
        fps: Of the clip; between the network's own frames joints move evenly.
        seed: The same one gives the same poses, and a shorter clip is the beginning of a longer.
        num_steps: Of every window.
        guidance: How much more than the prompt says; 1 as it says.

    Returns:
        ``points_TK3`` float32: x and y as shares of a square picture, and 1 where a joint is seen,
        0 where not.
    """
    config = net.config
    needed = math.ceil((num_frames - 1) * config.fps / fps) + 1
    words_BL = word_numbers(config, [prompt])
    generator = torch.Generator().manual_seed(seed)
    shape = (1, config.num_frames, NUM_FEATURES)
    how = {"num_steps": num_steps, "guidance": guidance}
    made = sample_window(net, words_BL, torch.randn(shape, generator=generator), **how)
    pieces, count = [made[0]], config.num_frames
    first_BF = made[:, 0]
    while count < needed:
        noise = torch.randn(shape, generator=generator)
        given = made[:, -config.num_given :]
        made = sample_window(net, words_BL, noise, given_BTF=given, first_BF=first_BF, **how)
        pieces.append(made[0, config.num_given :])
        count += config.num_frames - config.num_given
    points_TK3 = _at_times(
        from_features(torch.cat(pieces)), np.arange(num_frames) * config.fps / fps
    )
    points_TK3[..., 2] = points_TK3[..., 2] > 0.5
    return points_TK3


def _at_times(points_TK3: np.ndarray, places_T: np.ndarray) -> np.ndarray:
    """Points between frames, at fractional frame numbers."""
    before_T = np.minimum(places_T.astype(int), len(points_TK3) - 1)
    after_T = np.minimum(before_T + 1, len(points_TK3) - 1)
    share = (places_T - before_T)[:, None, None]
    return ((1 - share) * points_TK3[before_T] + share * points_TK3[after_T]).astype(np.float32)
