"""Training of text to pose: windows of a drawn person's joints, and the prompt they belong to."""

# Axes here: B clip, T frame, F feature of a frame, K joint, L word.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from musev.models.text_to_pose import UNKNOWN, TextToPoseNet, signal_at
from musev.quality.attributes import read_action
from musev.quality.pose import People
from musev.synthetic.captions import ACTION_PHRASES, VOCABULARY
from musev.synthetic.clips import DEFAULT_SIZE_PX, draw_joints
from musev.text_to_pose import TIMES_POWER, from_features, sample_window, to_features, word_numbers
from musev.text_to_pose_config import TextToPoseConfig
from musev.training.optimizer import Batch, Losses

ACTION_FRAMES = 12
"""What the judge of actions sees; a window must not be shorter."""
_CONNECTING = {"a", "and", "both", "in", "of", "the", "to"}
_NO_WORD = "qq"
"""In no vocabulary."""


@dataclass(frozen=True, kw_only=True)
class PoseCorruptionConfig:
    """What chance does to a batch of text to pose."""

    go_on: float = 0.5
    """Share of windows from later in a clip, whose first frames are given."""
    drop_text: float = 0.1
    unknown_words: float = 0.15
    """Share of words made unknown, and of places where unknown ones are put in, so that a prompt in
    other words than captions is understood as far as it can be."""
    given_noise: float = 0.03
    """Deviation of what is added to given frames: as wrong as the network's own, at inference."""
    speed: float = 3.0
    """Weight of the error of joints' speeds."""
    snr: float = 200.0
    """Extra weight of clips, in their signal-to-noise ratios. What is wrong where hardly anything
    is seen cannot be helped, and would be most of the loss."""
    most_weight: float = 2000.0
    """Of a clip. What little moves fast, a waving hand say, is decided where there is little noise:
    with 50 it stood still."""


def drawn_words_config(**sizes: Any) -> TextToPoseConfig:
    """Configuration of a network that is to learn the words of drawn captions.

    Args:
        **sizes: Other fields of the configuration.

    Returns:
        The configuration; telling are the phrases of actions, without words that only connect.
    """
    phrases = {
        " ".join(word for word in phrase.split() if word not in _CONNECTING)
        for ways in ACTION_PHRASES.values()
        for phrase in ways
    }
    return TextToPoseConfig(words=VOCABULARY, telling=tuple(sorted(phrases)), **sizes)


class PoseTraining(nn.Module):
    """The network and its loss.

    Args:
        net: Learns.
        config: Holds the weight of speeds.
    """

    def __init__(self, net: TextToPoseNet, config: PoseCorruptionConfig) -> None:
        super().__init__()
        self.net = net
        self.config = config

    def forward(self, batch: Batch) -> Losses:
        """Error of the clean joints, and of their speeds, on frames that are not given.

        Args:
            batch: From :meth:`PoseClips.batch`.

        Returns:
            ``loss``, and ``mse`` of the joints alone.
        """
        clean, given = batch["clean_BTF"], batch["is_given_BT"]
        signal_B, spread_B = signal_at(batch["times_B"])
        noisy = signal_B[:, None, None] * clean + spread_B[:, None, None] * batch["noise_BTF"]
        guess = self.net(
            noisy,
            batch["times_B"],
            batch["words_BL"],
            given_BTF=batch["given_BTF"],
            is_given_BT=given,
            first_BF=batch["first_BF"],
            has_first_B=batch["has_first_B"],
        )
        error = torch.where(given[..., None], 0.0, guess - clean)
        mse_B = error.square().flatten(1).mean(1)
        speed_B = (error[:, 1:] - error[:, :-1]).square().flatten(1).mean(1)
        weight_B = (1 + self.config.snr * (signal_B / spread_B) ** 2).clamp(
            max=self.config.most_weight
        )
        loss = (weight_B * (mse_B + self.config.speed * speed_B)).mean()
        return {"loss": loss, "mse": mse_B.detach().mean()}


class PoseClips:
    """Joints and captions of drawn clips, in memory.

    Args:
        config: Window's length and vocabulary.
        seed: Which endless source.
        num_clips: How many of its first clips.
        held_out: The combinations kept from training instead.
        longest: Frames of a clip: windows begin anywhere in it.
    """

    def __init__(
        self,
        config: TextToPoseConfig,
        *,
        seed: int,
        num_clips: int,
        held_out: bool = False,
        longest: int | None = None,
    ) -> None:
        self.config = config
        self.captions: list[str] = []
        self.actions: list[str] = []
        length = longest or 2 * config.num_frames + config.num_given
        features = []
        for index in range(num_clips):
            clip = draw_joints(seed, index, held_out=held_out, num_frames=length, fps=config.fps)
            shares = (clip.points_TJ2 + 0.5) / DEFAULT_SIZE_PX
            features.append(to_features(np.dstack([shares, clip.facing_TJ])).half())
            self.captions.append(clip.caption)
            self.actions.append(clip.attributes.action)
        self.features_NTF = torch.stack(features)

    def batch(
        self, indices: Sequence[int], corruption: PoseCorruptionConfig, *, seed: int
    ) -> Batch:
        """Draw a window of each clip, its noise and what is left out.

        Args:
            indices: Of clips.
            corruption: Probabilities.
            seed: Of all draws.

        Returns:
            A batch for :class:`PoseTraining`.
        """
        config, count = self.config, len(indices)
        generator = torch.Generator().manual_seed(seed)

        def chance(share: float, *shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) < share

        whole = self.features_NTF[list(indices)].float()
        latest = whole.shape[1] - config.num_frames
        goes_on_B = chance(corruption.go_on, count)
        starts_B = torch.randint(1, latest + 1, (count,), generator=generator) * goes_on_B
        places = starts_B[:, None] + torch.arange(config.num_frames)
        clean = whole.gather(1, places[..., None].expand(-1, -1, whole.shape[2]))
        is_given_BT = goes_on_B[:, None] & (torch.arange(config.num_frames) < config.num_given)
        wrong = corruption.given_noise * torch.randn(clean.shape, generator=generator)
        words_BL = self._words(indices, corruption, generator)
        words_BL[chance(corruption.drop_text, count)] = 0
        words_BL[:, 0] = torch.where(words_BL[:, 0] == 0, UNKNOWN, words_BL[:, 0])
        return {
            "clean_BTF": clean,
            "noise_BTF": torch.randn(clean.shape, generator=generator),
            "times_B": torch.rand(count, generator=generator) ** TIMES_POWER,
            "words_BL": words_BL,
            "given_BTF": clean + wrong,
            "is_given_BT": is_given_BT,
            "first_BF": whole[:, 0],
            "has_first_B": goes_on_B,
        }

    def _words(
        self, indices: Sequence[int], corruption: PoseCorruptionConfig, generator: torch.Generator
    ) -> Tensor:
        rows = []
        for index in indices:
            draws = torch.rand((40, 2), generator=generator).tolist()
            told = []
            for word, (change, put_in) in zip(self.captions[index].split(), draws, strict=False):
                told += [_NO_WORD, word] if put_in < corruption.unknown_words else [word]
                if change < corruption.unknown_words:
                    told[-1] = _NO_WORD
            rows.append(" ".join(told))
        return word_numbers(self.config, rows)


@torch.no_grad()
def right_actions(net: TextToPoseNet, clips: PoseClips, *, seed: int) -> float:
    """Share of captions whose poses show the action, by the judge of actions.

    Args:
        net: Makes one window of poses a clip.
        clips: Captions and actions.
        seed: Of the noise.

    Returns:
        0 to 1.

    Raises:
        ValueError: If windows are too short for that judge.
    """
    if net.config.num_frames < ACTION_FRAMES:
        raise ValueError(
            f"the judge of actions needs {ACTION_FRAMES} frames, windows have "
            f"{net.config.num_frames}"
        )
    device = next(net.parameters()).device
    words_BL = word_numbers(net.config, clips.captions)
    shape = (len(words_BL), net.config.num_frames, clips.features_NTF.shape[-1])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    made = sample_window(net, words_BL.to(device), noise.to(device)).cpu()
    named = [shown_action(points_TK3[:ACTION_FRAMES]) for points_TK3 in from_features(made)]
    return float(np.mean([a == b for a, b in zip(named, clips.actions, strict=True)]))


def shown_action(points_TK3: np.ndarray) -> str | None:
    """Name the action of made poses, as the judge does of a video's: what hardly moves is held.

    Args:
        points_TK3: Shares of a square picture, and seen or not, at 8 frames a second.

    Returns:
        The action; None if nobody is to be seen.
    """
    size = (DEFAULT_SIZE_PX, DEFAULT_SIZE_PX)
    people = People(
        points_TJ2=points_TK3[..., :2].astype(np.float32) * DEFAULT_SIZE_PX - 0.5,
        seen_TJ=(points_TK3[..., 2] > 0.5).astype(np.float32),
        parts_TPYX=np.zeros((len(points_TK3), 0, *size), np.float16),
    )
    return read_action(people, size).word
