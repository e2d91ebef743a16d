"""Prompt weights and text embeddings against the original's recorded numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from musev.errors import RequestError
from musev.models.text import encode_prompts, parse_prompt_weights
from tests.goldens import GOLDENS, have_goldens, load_tensors, pipeline_case, require_goldens

FUNCTIONS = GOLDENS / "pipeline" / "functions"


def _recorded(name: str) -> list[Any]:
    if not have_goldens():
        return [pytest.param({}, id="missing")]
    return json.loads((FUNCTIONS / name).read_text())


@pytest.mark.parity
@pytest.mark.parametrize("case", _recorded("prompt_weights.json"), ids=str)
def test_prompt_weights_of_the_pipeline_equal_the_recorded(case: dict[str, Any]) -> None:
    require_goldens()
    if "error" in case:
        with pytest.raises(RequestError, match=r"1\.2\.3"):
            parse_prompt_weights(case["prompt"])
        return
    assert parse_prompt_weights(case["prompt"]) == [tuple(piece) for piece in case["parsed"]]


def _recorded_encoder() -> tuple[CLIPTokenizer, CLIPTextModel]:
    folder = GOLDENS / "pipeline" / "components"
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), encoder.eval()


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parity
@pytest.mark.parametrize("case", _recorded("text_embeds.json"), ids=lambda c: str(c.get("case")))
def test_text_embeddings_of_the_pipeline_equal_the_recorded(case: dict[str, Any]) -> None:
    require_goldens()
    tokenizer, encoder = _recorded_encoder()
    repeat = case.get("num_images_per_prompt", 1)
    prompts = [text for text in _as_list(case["prompt"]) for _ in range(repeat)]
    negatives = [text for text in _as_list(case["negative_prompt"]) for _ in range(repeat)]
    found = encode_prompts(tokenizer, encoder, prompts, negatives)
    recorded = load_tensors(FUNCTIONS / "text_embeds.safetensors")
    if repeat > 1:
        torch.testing.assert_close(found, recorded[case["case"]], atol=5e-5, rtol=0)
        return
    torch.testing.assert_close(found, recorded[f"{case['case']}.cfg1"], atol=5e-5, rtol=0)
    alone = encode_prompts(tokenizer, encoder, prompts)
    torch.testing.assert_close(alone, recorded[f"{case['case']}.cfg0"], atol=5e-5, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["long_prompt", "prompt_batch2"])
def test_text_embeddings_equal_the_pipelines(name: str) -> None:
    case, tensors = pipeline_case(name)
    tokenizer, encoder = _recorded_encoder()
    prompts = _as_list(case["call"]["prompt"])
    negatives = _as_list(case["call"].get("negative_prompt") or "")
    found = encode_prompts(tokenizer, encoder, prompts, negatives)
    torch.testing.assert_close(found, tensors["c0.prompt_embeds"], atol=5e-5, rtol=0)


@pytest.fixture(scope="module")
def tiny() -> tuple[CLIPTokenizer, CLIPTextModel]:
    letters = [chr(code) for code in range(97, 123)]
    words = letters + [letter + "</w>" for letter in letters]
    vocab = {
        word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])
    }
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(vocab) - 2,
        eos_token_id=len(vocab) - 1,
    )
    encoder = CLIPTextModel(config).eval()
    # A fresh layer norm has mean zero, a trained one has not; weights are scaled by that mean.
    torch.nn.init.normal_(encoder.final_layer_norm.bias)
    return tokenizer, encoder


@pytest.mark.parametrize(
    ("num_words", "length"), [(0, 77), (75, 77), (76, 154), (225, 231), (226, 308), (1000, 1078)]
)
def test_prompts_take_as_many_chunks_as_they_need(
    tiny: tuple[CLIPTokenizer, CLIPTextModel], num_words: int, length: int
) -> None:
    found = encode_prompts(*tiny, [" ".join("a" * num_words)], ["b"])
    assert found.shape == (2, length, 16)
    assert torch.isfinite(found).all()


def test_words_behind_the_third_chunk_count(tiny: tuple[CLIPTokenizer, CLIPTextModel]) -> None:
    words = ["a"] * 230
    other = [*words[:-1], "b"]
    first = encode_prompts(*tiny, [" ".join(words)])
    second = encode_prompts(*tiny, [" ".join(other)])
    assert torch.equal(first[:, :231], second[:, :231])
    assert not torch.equal(first[:, 231:], second[:, 231:])


def test_negative_prompts_come_first(tiny: tuple[CLIPTokenizer, CLIPTextModel]) -> None:
    both = encode_prompts(*tiny, ["a b", "c"], ["x", "y"])
    assert both.shape == (4, 77, 16)
    assert torch.equal(both[:2], encode_prompts(*tiny, ["x", "y"]))
    assert torch.equal(both[2:], encode_prompts(*tiny, ["a b", "c"]))


def test_a_prompts_embedding_does_not_depend_on_its_neighbours(
    tiny: tuple[CLIPTokenizer, CLIPTextModel],
) -> None:
    alone = encode_prompts(*tiny, ["a b c"])
    among = encode_prompts(*tiny, ["z", "a b c", "q r"])
    assert torch.equal(alone[0], among[1])


def test_weights_keep_the_mean_and_change_the_words(
    tiny: tuple[CLIPTokenizer, CLIPTextModel],
) -> None:
    plain = encode_prompts(*tiny, ["a b c"])
    strong = encode_prompts(*tiny, ["a (b:1.8) c"])
    torch.testing.assert_close(plain.mean(), strong.mean(), atol=1e-6, rtol=1e-4)
    ratio = (strong / plain)[0].median(dim=-1).values
    assert ratio[2] / ratio[0] == pytest.approx(1.8, rel=1e-4)


def test_unequal_numbers_of_prompts_are_refused(tiny: tuple[CLIPTokenizer, CLIPTextModel]) -> None:
    with pytest.raises(RequestError, match="1 prompts but 2 negative"):
        encode_prompts(*tiny, ["a"], ["b", "c"])


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("a (b: 0.9) c", [("a ", 1.0), ("b: 0.9", 1.1), (" c", 1.0)]),
        ("x:1.5)", [("x:1.5)", 1.0)]),
        ("[a:0.5]", [("a:0.5", 1 / 1.1)]),
        ("(a:0)", [("a", 0.0)]),
    ],
)
def test_corner_cases_of_the_syntax(prompt: str, parsed: list[tuple[str, float]]) -> None:
    assert parse_prompt_weights(prompt) == parsed
