"""Batches of clips: a pure function of the position, and every part belongs to the same clip."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPTokenizer

from musev.training.clip_batches import ClipBatches, Position, image_prompt_pixels
from musev.training.corruption import CorruptionConfig
from musev.training.latents import ClipSource, LatentStore
from musev.training.stages import BatchConfig
from musev.training.starts import PROMPT_TOKENS
from musev.training.vae import make_vae
from musev.training.vocabulary import make_word_tokenizer, token_ids

NUM_CLIPS, NUM_FRAMES = 6, 4
KEEP_ALL = CorruptionConfig(
    drop_text=0, drop_text_with_reference=0, drop_reference=0, short_window=0
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    source = ClipSource(seed=1, num_frames=NUM_FRAMES, size_px=32)
    folder: Path = tmp_path_factory.mktemp("latents")
    store = LatentStore(str(folder), source, clips_per_file=NUM_CLIPS)
    torch.manual_seed(0)
    store.encode(make_vae((8, 8, 8, 8)), 0)
    store.load(1)
    return store


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    from musev.synthetic.captions import VOCABULARY

    return make_word_tokenizer([*VOCABULARY, ","], max_length=PROMPT_TOKENS)


def _batches(
    store: LatentStore, tokenizer: CLIPTokenizer, *, seed: int = 0, **config: int | bool
) -> ClipBatches:
    settings = {"num_clips": 2, "num_frames": 2, "control": True, "reference": True} | config
    return ClipBatches(store, BatchConfig(**settings), KEEP_ALL, tokenizer, seed, 16)


def test_running_numbers_count_workers_within_parts_within_steps() -> None:
    places = [
        Position(step=step, micro=micro, accumulate=2, worker=worker, num_workers=3).number
        for step in range(3)
        for micro in range(2)
        for worker in range(3)
    ]
    assert places == list(range(18))


def test_the_same_position_gives_the_same_bits(
    store: LatentStore, tokenizer: CLIPTokenizer
) -> None:
    batches = _batches(store, tokenizer)
    later = Position(step=7, micro=1, accumulate=2)
    first = batches.at(later)
    batches.at(Position(step=0))
    again = _batches(store, tokenizer).at(later)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = _batches(store, tokenizer, seed=1).at(later)
    assert not torch.equal(first["latents_BCTHW"], other["latents_BCTHW"])


def test_timesteps_are_those_of_the_diffusion(store: LatentStore, tokenizer: CLIPTokenizer) -> None:
    batches = dataclasses.replace(_batches(store, tokenizer), num_timesteps=3)
    drawn = {int(t) for step in range(20) for t in batches.at(Position(step=step))["timesteps_B"]}
    assert drawn == {0, 1, 2}


def test_workers_share_out_one_series(store: LatentStore, tokenizer: CLIPTokenizer) -> None:
    """Two workers see together what one sees that takes both their batches in a row."""
    batches = _batches(store, tokenizer)
    alone = [batches.at(Position(step=4, micro=n, accumulate=2)) for n in range(2)]
    shared = [batches.at(Position(step=4, worker=n, num_workers=2)) for n in range(2)]
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_workers_of_a_step_have_as_much_to_do(store: LatentStore, tokenizer: CLIPTokenizer) -> None:
    """Conditions and lengths are the step's; noise, timesteps and clips are each worker's own."""
    batches = _batches(store, tokenizer, num_frames=4)
    batches.corruption = CorruptionConfig(
        drop_reference=0.3, drop_control=0.5, drop_pictures=0.3, short_window=0.5
    )
    kinds = set()
    for step in range(24):
        first, other = (batches.at(Position(step=step, worker=n, num_workers=2)) for n in range(2))
        shapes = [{name: value.shape for name, value in batch.items()} for batch in (first, other)]
        assert shapes[0] == shapes[1]
        assert not torch.equal(first["noise_BCTHW"], other["noise_BCTHW"])
        assert not torch.equal(first["latents_BCTHW"], other["latents_BCTHW"])
        kinds.add((frozenset(first), first["latents_BCTHW"].shape[2]))
    assert len(kinds) > 6


def test_all_parts_of_a_batch_belong_together(store: LatentStore, tokenizer: CLIPTokenizer) -> None:
    batch = _batches(store, tokenizer).at(Position(step=3))
    stored = store.rows(list(range(NUM_CLIPS)))
    for b in range(2):
        latents = batch["latents_BCTHW"][b]
        places = [
            (index, start)
            for index in range(NUM_CLIPS)
            for start in range(NUM_FRAMES - 1)
            if torch.equal(stored["latents_CTHW"][index, :, start : start + 2], latents)
        ]
        ((index, start),) = places
        span, clip = slice(start, start + 2), store.source.draw(index)
        assert torch.equal(batch["person_BTHW"][b] * 255, stored["person_THW"][index, span])
        assert torch.equal(batch["ids_BL"][b], token_ids(tokenizer, [clip.caption])[0])
        control = (batch["control_BTCYX"][b] * 255).round().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(control, clip.control_TYXC[span])
        reference = batch["reference_BCTHW"][b, :, 0]
        own = torch.equal(reference, stored["latents_CTHW"][index, :, 0])
        assert own or torch.equal(reference, stored["reference_CHW"][index])
        picture = clip.frames_TYXC[0] if own else clip.reference_YXC
        assert torch.equal(batch["image_prompt_BCYX"][b], image_prompt_pixels([picture], 16)[0])


def test_what_is_dropped_is_not_even_drawn(
    store: LatentStore, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is left has the same bits as where everything is drawn and then dropped."""
    batches = _batches(store, tokenizer)
    some = CorruptionConfig(drop_reference=0.3, drop_control=0.5, drop_pictures=0.5)
    batches.corruption = some
    found = [batches.at(Position(step=step)) for step in range(24)]
    monkeypatch.setattr("musev.training.clip_batches.dropped_entries", _nothing)
    whole = [batches.at(Position(step=step)) for step in range(24)]
    for thrifty, lavish in zip(found, whole, strict=True):
        assert thrifty.keys() == lavish.keys()
        assert all(torch.equal(thrifty[name], lavish[name]) for name in thrifty)
    kinds = {frozenset(batch) & {"control_BTCYX", "image_prompt_BCYX"} for batch in found}
    assert len(kinds) == 4
    monkeypatch.undo()
    monkeypatch.setattr(ClipSource, "draw", _refuse)
    batches.corruption = CorruptionConfig(drop_control=1, drop_pictures=1)
    assert not {"control_BTCYX", "image_prompt_BCYX"} & batches.at(Position(step=0)).keys()


def _nothing(*_args: object, **_kwargs: object) -> frozenset[str]:
    return frozenset()


def _refuse(*_args: object) -> None:
    raise AssertionError("a clip was drawn that nobody looks at")


def test_every_so_often_single_frames_instead(store: LatentStore, tokenizer: CLIPTokenizer) -> None:
    batches = _batches(store, tokenizer, image_every=2, images_then=5)
    shapes = [batches.at(Position(step=step))["latents_BCTHW"].shape[:3] for step in range(4)]
    assert shapes == [(2, 4, 2), (5, 4, 1)] * 2


def test_only_what_a_stage_reads_is_there(store: LatentStore, tokenizer: CLIPTokenizer) -> None:
    batch = _batches(store, tokenizer, control=False, reference=False).at(Position(step=0))
    assert not {"control_BTCYX", "reference_BCTHW", "image_prompt_BCYX"} & batch.keys()


def test_pictures_are_prepared_as_clip_wants_them() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(image_prompt_pixels([picture], 16), expected, atol=2e-2, rtol=0)
