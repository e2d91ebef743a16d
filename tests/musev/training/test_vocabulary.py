"""The small tokenizer: one token a word, CLIP's own layout, and nothing that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from musev.models.loading import load_tokenizer
from musev.models.text import _tokenize
from musev.models.text_inversion import Words
from musev.synthetic.captions import VOCABULARY
from musev.synthetic.clips import draw_clip
from musev.training.vocabulary import learn_merges, make_word_tokenizer, token_ids

WORDS = ["red", "read", "bread", "coat", "a", ","]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return make_word_tokenizer(WORDS, max_length=8)


def test_every_word_is_one_token_of_its_own(tokenizer: CLIPTokenizer) -> None:
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
    assert all(len(each) == 1 for each in ids)
    assert len({each[0] for each in ids}) == len(WORDS)


def test_other_words_fall_apart_and_come_back(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("redcoats", add_special_tokens=False).input_ids
    assert len(ids) > 1
    assert tokenizer.decode(ids).strip() == "redcoats"


def test_merges_do_not_depend_on_the_order_of_words() -> None:
    assert learn_merges(sorted(WORDS)) == learn_merges(sorted(reversed(WORDS)))
    first = make_word_tokenizer(WORDS, max_length=8).get_vocab()
    assert first == make_word_tokenizer(reversed(WORDS), max_length=8).get_vocab()


def test_ids_are_laid_out_as_at_inference(tokenizer: CLIPTokenizer) -> None:
    ids = token_ids(tokenizer, ["a red coat", ""])
    words, _ = _tokenize(tokenizer, "a red coat", Words())
    pad, start, end = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids.tolist() == [[start, *words, pad, pad, pad, end], [start, *[pad] * 6, end]]
    assert ids.dtype == torch.int64


def test_long_captions_are_cut(tokenizer: CLIPTokenizer) -> None:
    ids = token_ids(tokenizer, ["a red coat, a red coat, a red coat"])
    assert ids.shape == (1, 8)
    assert ids[0, -1] == tokenizer.eos_token_id


def test_it_reads_back_from_a_folder(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert torch.equal(token_ids(again, ["a bread"]), token_ids(tokenizer, ["a bread"]))


def test_captions_of_drawn_people_fit_into_the_prompt() -> None:
    tokenizer = make_word_tokenizer([*VOCABULARY, ","], max_length=32)
    for number in range(20):
        caption = draw_clip(3, number, num_frames=1, height=32, width=32).caption
        ids = tokenizer(caption, add_special_tokens=False).input_ids
        assert len(ids) == len(caption.replace(",", " ,").split())
        assert len(ids) <= 30
