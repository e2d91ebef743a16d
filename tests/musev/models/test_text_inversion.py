"""Textual inversion against the original's recorded embeddings, and what we do better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from musev.errors import WeightsError
from musev.models.text import encode_prompts
from musev.models.text_inversion import Words, add_words, read_vectors
from musev.models.tiny import make_tiny_bundle
from tests.goldens import GOLDENS, have_goldens, load_tensors, require_goldens

FUNCTIONS = GOLDENS / "pipeline" / "functions"
COMPONENTS = GOLDENS / "pipeline" / "components"
WIDTH = 6


def recorded() -> dict[str, Any]:
    if not have_goldens():
        return {"cases": [{"case": "missing"}]}
    return json.loads((FUNCTIONS / "text_embeds_ti.json").read_text())


def recorded_encoder(*, first_only: bool) -> tuple[CLIPTokenizer, CLIPTextModel, Words]:
    encoder = CLIPTextModel.from_pretrained(COMPONENTS / "text_encoder").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(COMPONENTS / "tokenizer")
    files = {
        word: read_vectors(COMPONENTS / "textual_inversion" / file)
        for file, word in recorded()["textual_inversion"]
    }
    return tokenizer, encoder, add_words(encoder, tokenizer, files, first_only=first_only)


@pytest.mark.parity
@pytest.mark.parametrize("case", recorded()["cases"], ids=lambda case: str(case["case"]))
def test_embeddings_equal_the_pipelines(case: dict[str, Any]) -> None:
    require_goldens()
    tokenizer, encoder, words = recorded_encoder(first_only=True)
    negatives = [case["negative_prompt"]]
    found = encode_prompts(tokenizer, encoder, [case["prompt"]], negatives, words=words)
    expected = load_tensors(FUNCTIONS / "text_embeds_ti.safetensors")[f"{case['case']}.cfg1"]
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parity
def test_the_table_grows_as_the_pipelines() -> None:
    require_goldens()
    _, encoder, words = recorded_encoder(first_only=True)
    told = recorded()
    table = encoder.get_input_embeddings().weight
    assert len(table) == told["table_rows"] == encoder.config.vocab_size
    new = load_tensors(FUNCTIONS / "text_embeds_ti.safetensors")["embedding_table_new_rows"]
    assert torch.equal(table[told["vocabulary_before"] :], new)
    assert {word: rows[0] for word, rows in words.ids.items()} == told["added_tokens"]


@pytest.mark.parity
def test_all_vectors_of_a_word_count() -> None:
    require_goldens()
    tokenizer, encoder, words = recorded_encoder(first_only=False)
    word = "ng_deepnegative_v1_75t"
    assert len(words.ids[word]) == 3
    short = encode_prompts(tokenizer, encoder, [f"a {word} b"], words=words)
    _, _, first = recorded_encoder(first_only=True)
    by_hand = f"a {word} {word}_1 {word}_2 b"  # each of these is one vector there
    assert torch.equal(short, encode_prompts(tokenizer, encoder, [by_hand], words=first))
    assert not torch.equal(short, encode_prompts(tokenizer, encoder, [f"a {word} b"], words=first))


VECTORS = torch.arange(2.0 * WIDTH).reshape(2, WIDTH)


def _a1111() -> dict[str, Any]:
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": {"*": torch.nn.Parameter(VECTORS)},
        "name": "bad",
        "step": 100,
        "sd_checkpoint": None,
    }


def _first_kind() -> dict[str, Any]:
    """As the first training code for textual inversion wrote it."""
    held = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": held}


@pytest.mark.parametrize("values", [_a1111(), _first_kind(), {"<cat>": VECTORS}])
def test_pickled_kinds(values: dict[str, Any], tmp_path: Path) -> None:
    torch.save(values, tmp_path / "word.pt")
    assert torch.equal(read_vectors(tmp_path / "word.pt"), VECTORS)


def test_one_vector_and_half_precision(tmp_path: Path) -> None:
    torch.save({"<cat>": VECTORS[1].half()}, tmp_path / "word.bin")
    found = read_vectors(tmp_path / "word.bin")
    assert found.dtype == torch.float32
    assert torch.equal(found, VECTORS[1:])
    save_file({"emb_params": VECTORS}, tmp_path / "word.safetensors")
    assert torch.equal(read_vectors(tmp_path / "word.safetensors"), VECTORS)


@pytest.mark.parametrize(
    "values", [{"clip_l": VECTORS, "clip_g": VECTORS}, {"step": 1}, {"a": torch.zeros(1, 2, 3)}]
)
def test_other_files_are_told(values: dict[str, Any], tmp_path: Path) -> None:
    torch.save(values, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt: holds"):
        read_vectors(tmp_path / "other.pt")


def test_words_are_found_inside_text_with_their_case() -> None:
    words = Words({"bad": (1,), "bad_75t": (2, 3), "bad_75t_1": (3,)})
    assert words.split("xbad_75ty BAD, bad_75t_1bad") == [
        "x", (2, 3), "y BAD, ", (3,), "", (1,), "",
    ]  # fmt: skip
    assert Words().split("bad") == ["bad"]


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ({"a</w>": (1, 32)}, "is a word already"),
        ({"bad": (2, 32), "bad_1": (1, 32)}, "'bad_1' is a word already"),
        ({"bad": (1, 768)}, "768 numbers, but the text encoder's have 32"),
    ],
)
def test_words_that_cannot_be_added(words: dict[str, tuple[int, int]], phrase: str) -> None:
    bundle = make_tiny_bundle(0)
    vectors: dict[str, Tensor] = {word: torch.zeros(shape) for word, shape in words.items()}
    with pytest.raises(WeightsError, match=phrase):
        add_words(bundle.text_encoder, bundle.tokenizer, vectors)
