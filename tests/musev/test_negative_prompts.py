from __future__ import annotations

import json

import pytest

from musev.negative_prompts import EMBEDDING_TOKENS, NEGATIVE_PROMPTS, missing_tokens
from tests.goldens import GOLDENS, have_goldens, require_goldens

FILE = GOLDENS / "pipeline" / "functions" / "configs.json"
TABLE = json.loads(FILE.read_text())["negative_prompt"] if have_goldens() else {"missing": {}}


@pytest.mark.parity
@pytest.mark.parametrize("name", TABLE)
def test_a_text_of_the_table_equals_the_pipelines(name: str) -> None:
    require_goldens()
    assert NEGATIVE_PROMPTS[name] == TABLE[name]["prompt"]


@pytest.mark.parity
def test_the_pipelines_table_has_no_other_names() -> None:
    require_goldens()
    assert list(NEGATIVE_PROMPTS) == list(TABLE)


def test_tokens_whose_embeddings_are_missing() -> None:
    assert missing_tokens(NEGATIVE_PROMPTS["V4"], ()) == EMBEDDING_TOKENS
    assert missing_tokens(NEGATIVE_PROMPTS["V2"], ["badhandv4"]) == ("ng_deepnegative_v1_75t",)
    assert missing_tokens(NEGATIVE_PROMPTS["V5"], ()) == ()
    assert missing_tokens("xbadhandv4y", ()) == ("badhandv4",), "inside a word too"
