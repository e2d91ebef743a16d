"""What a network of text to pose was made for, and the words that it knows; needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from musev.errors import ConfigError, WeightsError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
NUM_STEPS = 20
GUIDANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class TextToPoseConfig:
    """Sizes of the network and of what it was trained on."""

    words: tuple[str, ...]
    """Vocabulary, lower case; words beside it are all one unknown word."""
    telling: tuple[str, ...] = ()
    """Those that tell what is done; a prompt without any of them gets no poses.
    Empty: all."""
    fps: float = 8.0
    num_frames: int = 32
    """Made at a time."""
    num_given: int = 12
    """Of these, repeated from before where a clip goes on."""
    width: int = 96
    depth: int = 4
    num_heads: int = 4

    def __post_init__(self) -> None:
        if not self.words:
            raise ConfigError("text to pose needs a vocabulary; words is empty")
        if not 0 < self.num_given < self.num_frames:
            raise ConfigError(
                f"num_given must be above 0 and below num_frames={self.num_frames}, got "
                f"{self.num_given}"
            )
        if strangers := sorted(set(self.telling) - set(self.words)):
            raise ConfigError(f"telling holds words beside the vocabulary: {', '.join(strangers)}")
        if self.width % (2 * self.num_heads):
            raise ConfigError(
                f"width {self.width} must be a multiple of twice num_heads={self.num_heads}"
            )


def read_text_to_pose_config(folder: Path) -> TextToPoseConfig:
    """Read a network's configuration.

    Args:
        folder: As training stage text-to-pose exports it.

    Returns:
        The configuration.

    Raises:
        WeightsError: If there is none that can be read.
    """
    path = folder / CONFIG_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: tuple(facts[name]) for name in ("words", "telling")}
        return TextToPoseConfig(**facts | lists)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise WeightsError(
            f"{path} describes no network of text to pose ({type(error).__name__}: {error}). Give "
            "a folder that training stage text-to-pose exported, or package:drawn-poses."
        ) from error
