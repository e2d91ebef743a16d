"""The configuration of text to pose: read back as written, and told plainly what is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from musev.errors import ConfigError, WeightsError
from musev.text_to_pose_config import (
    CONFIG_FILE,
    MOST_WORDS,
    TextToPoseConfig,
    read_text_to_pose_config,
)

CONFIG = TextToPoseConfig(
    words=("a", "person", "raising", "arms", "waving"),
    telling=("waving", "raising arms"),
    num_frames=20,
)


def test_a_prompt_tells_an_action_by_all_words_of_a_phrase() -> None:
    assert CONFIG.tells("A person waving!")
    assert CONFIG.tells("arms? she is raising them")
    assert not CONFIG.tells("a coat of arms")
    assert TextToPoseConfig(words=("a", "dog")).tells("a cat")
    assert not TextToPoseConfig(words=("a", "dog")).tells("two cats")


def test_of_a_long_prompt_known_words_are_heard_first() -> None:
    assert CONFIG.heard("a masterpiece, waving") == ["a", "masterpiece", "waving"]
    quality = ", ".join(f"quality{number}" for number in range(60))
    assert CONFIG.heard(f"{quality}, a person is waving") == ["a", "person", "waving"]
    assert CONFIG.tells(f"{quality}, a person is waving")
    repeated = f"{'a ' * MOST_WORDS} waving"
    assert CONFIG.heard(repeated) == ["a"] * MOST_WORDS
    assert not CONFIG.tells(repeated), "what the network does not hear tells nothing"


def test_a_configuration_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(CONFIG)))
    assert read_text_to_pose_config(tmp_path) == CONFIG


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"words": ()}, "vocabulary"),
        ({"num_given": 20}, "num_given"),
        ({"num_given": 0}, "num_given"),
        ({"width": 90}, "num_heads"),
        ({"telling": ("jumping",)}, "jumping"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize("text", [None, "no JSON", "{}", '{"words": ["a"], "telling": [], "x": 1}'])
def test_a_file_that_is_none_names_itself_and_the_remedy(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json.*package:drawn-poses"):
        read_text_to_pose_config(tmp_path)
