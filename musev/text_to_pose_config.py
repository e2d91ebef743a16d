"""What a network of text to pose was made for, and the words that it knows; needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from musev.errors import ConfigError, WeightsError
from musev.words import words_of

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MOST_WORDS = 40
NUM_STEPS = 20
GUIDANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class TextToPoseConfig:
    """Sizes of the network and of what it was trained on."""

    words: tuple[str, ...]
    """Vocabulary, lower case; words beside it are all one unknown word."""
    telling: tuple[str, ...] = ()
    """Words that together tell what is done, "raising arms" say; a prompt that does not hold all
    words of one of them gets no poses. Empty: any word of the vocabulary tells."""
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
        telling = {word for phrase in self.telling for word in phrase.split()}
        if strangers := sorted(telling - set(self.words)):
            raise ConfigError(f"telling holds words beside the vocabulary: {', '.join(strangers)}")
        if self.width % (2 * self.num_heads):
            raise ConfigError(
                f"width {self.width} must be a multiple of twice num_heads={self.num_heads}"
            )

    def heard(self, prompt: str) -> list[str]:
        """The words of a prompt that reach the network.

        Args:
            prompt: Of any length.

        Returns:
            At most :data:`MOST_WORDS`; of a longer prompt, unknown ones are left out first.
        """
        words = words_of(prompt)
        if len(words) > MOST_WORDS:
            words = [word for word in words if word in self.words]
        return words[:MOST_WORDS]

    def tells(self, prompt: str) -> bool:
        """Whether a prompt says what is done, in words that reach the network."""
        heard = set(self.heard(prompt))
        return any(heard.issuperset(phrase.split()) for phrase in self.telling or self.words)


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
