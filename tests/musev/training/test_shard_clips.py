"""A dataset serves a diffusion stage as drawn clips do, from its latents or from its pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load as load_tensors

from musev.config import EncoderConfig
from musev.errors import ConfigError
from musev.models.text import encode_prompts
from musev.models.tiny import make_tiny_bundle
from musev.synthetic.clips import draw_clip
from musev.training import shard_clips as module
from musev.training.clip_batches import ClipBatches, Position
from musev.training.corruption import CorruptionConfig
from musev.training.latents import encode_clip, mark_of
from musev.training.runs import prepare_run
from musev.training.shard_clips import (
    ShardClips,
    encode_any,
    held_out_numbers,
    latents_file,
    open_clips,
)
from musev.training.shard_files import DatasetClip, clip_files, read_clip
from musev.training.shards import ShardDataset
from musev.training.stages import BatchConfig
from musev.training.vae import make_vae
from musev.training.vocabulary import make_word_tokenizer
from tests.musev.training.dataset_folder import write_dataset
from tests.musev.training.small import changed, save_small_vae, small_run, weights_of

ENCODER = EncoderConfig(preset="ultrafast")
NUM_CLIPS, NUM_FRAMES = 5, 3


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return make_vae((8, 8, 8, 8)).eval().requires_grad_(False)


def clip(index: int, *, real: bool = False) -> DatasetClip:
    drawn = draw_clip(3, index, height=32, width=32, num_frames=NUM_FRAMES)
    made = DatasetClip(
        key=f"{index:08d}",
        clip_id=f"clip {index}",
        caption=drawn.caption,
        attributes={},
        frames_TYXC=drawn.frames_TYXC,
        fps=8.0,
    )
    if real:
        return made
    return dataclasses.replace(
        made,
        control_TYXC=drawn.control_TYXC,
        reference_YXC=drawn.reference_YXC,
        mask_TYX=drawn.mask_TYX,
    )


def dataset_uri(
    folder: Path, vae: AutoencoderKL | None = None, *, real: bool = False, mark: str | None = None
) -> str:
    from safetensors.torch import save

    files = []
    for index in range(NUM_CLIPS):
        extra = {}
        if vae is not None:
            extra["latents.safetensors"] = save(encode_any(vae, clip(index, real=real)))
        files.append(clip_files(clip(index, real=real), ENCODER, extra))
    mark = mark or (None if vae is None else mark_of(vae))
    return write_dataset(folder, [files[:2], files[2:]], vae_mark=mark)


def opened(uri: str, vae: AutoencoderKL, cache: Path) -> ShardClips:
    return ShardClips(ShardDataset(uri), [4, 0, 2], vae, str(cache))


def test_fitting_latents_are_taken_as_they_are(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = opened(dataset_uri(tmp_path / "d", vae), vae, tmp_path / "cache")
    monkeypatch.setattr(module, "encode_any", None)  # nothing is encoded
    rows = clips.rows([1, 0])
    for place, number in enumerate((0, 4)):
        expected = encode_clip(
            vae, draw_clip(3, number, height=32, width=32, num_frames=3), reference=True
        )
        for name, value in expected.items():
            assert torch.equal(rows[name][place], value.float()), name
    assert clips.caption(1) == clip(0).caption
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mark", [None, "another"])
def test_other_latents_are_encoded_once_and_kept(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str | None
) -> None:
    uri = dataset_uri(tmp_path / "d", vae if mark else None, mark=mark)
    clips = opened(uri, vae, tmp_path / "cache")
    rows = clips.rows([2, 2, 1])
    (files,) = ShardDataset(uri).read([2])
    expected = encode_any(vae, read_clip(files))
    assert torch.equal(rows["latents_CTHW"][0], expected["latents_CTHW"].float())
    assert torch.equal(rows["latents_CTHW"][0], rows["latents_CTHW"][1])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    monkeypatch.setattr(module, "encode_any", None)
    again = opened(uri, vae, tmp_path / "cache").rows([2, 1])
    assert torch.equal(again["latents_CTHW"], rows["latents_CTHW"][1:])


def test_two_runs_may_encode_the_same_clip_at_once(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two machines even their process numbers may be equal: no name is written twice."""
    uri, names = dataset_uri(tmp_path / "d"), []
    first, second = (opened(uri, vae, tmp_path / "cache") for _ in range(2))
    write = first._cache.pipe_file

    def pipe_file(path: str, data: bytes) -> None:
        names.append(path)
        write(path, data)
        if len(names) == 1:  # the second comes before the first has renamed its own
            second.rows([1])

    monkeypatch.setattr(first._cache, "pipe_file", pipe_file)
    rows = first.rows([1])
    assert len(set(names)) == 2
    assert torch.equal(second.rows([1])["latents_CTHW"], rows["latents_CTHW"])
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_another_encoder_never_reads_kept_latents(vae: AutoencoderKL, tmp_path: Path) -> None:
    uri = dataset_uri(tmp_path / "d")
    first = opened(uri, vae, tmp_path / "cache").rows([0])
    torch.manual_seed(1)
    other = make_vae((8, 8, 8, 8)).eval()
    second = opened(uri, other, tmp_path / "cache").rows([0])
    assert not torch.equal(first["latents_CTHW"], second["latents_CTHW"])


def test_real_clips_have_no_person_and_their_last_frame_for_reference(
    vae: AutoencoderKL, tmp_path: Path
) -> None:
    clips = opened(dataset_uri(tmp_path / "d", real=True), vae, tmp_path / "cache")
    rows = clips.rows([0])
    assert not rows["person_THW"].any()
    assert torch.equal(rows["reference_CHW"][0], rows["latents_CTHW"][0, :, -1])
    drawn = clips.source.draw(0)
    np.testing.assert_array_equal(drawn.reference_YXC, drawn.frames_TYXC[-1])
    assert drawn.control_TYXC is None


def test_batches_of_a_stage_with_everything(vae: AutoencoderKL, tmp_path: Path) -> None:
    training, held_out = open_clips(
        dataset_uri(tmp_path / "d", vae),
        vae,
        str(tmp_path / "cache"),
        {"num_frames": 2, "control": True},
    )
    assert (training.num_clips, held_out.num_clips) == (NUM_CLIPS - 1, 1)
    batches = ClipBatches(
        store=training,
        config=BatchConfig(num_clips=2, num_frames=2, control=True, reference=True),
        corruption=CorruptionConfig(),
        tokenizer=make_word_tokenizer(["person"], max_length=8),
        seed=0,
        image_prompt_px=16,
    )
    batch = batches.at(Position(step=3))
    assert batch["latents_BCTHW"].shape == (2, 4, 2, 4, 4)
    assert batch["control_BTCYX"].shape == (2, 2, 3, 32, 32)
    assert batch["image_prompt_BCYX"].shape == (2, 3, 16, 16)
    again = batches.at(Position(step=3))
    assert all(torch.equal(batch[name], again[name]) for name in batch)


@pytest.mark.parametrize("name", ["mini-reference", "mini-controlnet"])
def test_a_stage_trains_from_a_dataset_and_goes_on_with_the_same_batches(
    tmp_path: Path, name: str
) -> None:
    init = save_small_vae(tmp_path)
    uri = dataset_uri(tmp_path / "d")
    run = dataclasses.replace(small_run(name, tmp_path, init), data=uri)
    first = prepare_run(run)
    before = weights_of(first.module)
    assert first.trainer.do_step(first.batches_of(0), 2)["loss"] > 0
    assert changed(first.module, before)
    second = prepare_run(run)
    for old, new in zip(first.batches_of(1), second.batches_of(1), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert list((tmp_path / "latents").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("needs", "phrase"),
    [
        ({"num_frames": 9, "control": False}, "--set num_frames=9"),
        ({"num_frames": 1, "control": True}, "control drawings of 0 of"),
    ],
)
def test_a_dataset_that_cannot_serve_the_stage_is_refused(
    vae: AutoencoderKL, tmp_path: Path, needs: dict[str, int | bool], phrase: str
) -> None:
    uri = dataset_uri(tmp_path / "d", real=True)
    with pytest.raises(ConfigError, match=phrase):
        open_clips(uri, vae, str(tmp_path), needs)


def test_a_dataset_of_one_clip_cannot_be_divided(vae: AutoencoderKL, tmp_path: Path) -> None:
    uri = write_dataset(tmp_path / "d", [[clip_files(clip(0), ENCODER)]])
    with pytest.raises(ConfigError, match="has 1 clips"):
        open_clips(uri, vae, str(tmp_path), {"num_frames": 1, "control": False})


@pytest.mark.parametrize(("num_clips", "count"), [(2, 1), (31, 1), (32, 2), (5000, 64)])
def test_held_out_clips_are_few_and_spread(num_clips: int, count: int) -> None:
    kept = held_out_numbers(num_clips)
    assert len(set(kept)) == count
    assert 0 <= min(kept) <= max(kept) < num_clips
    assert count == 1 or max(kept) >= num_clips * (count - 1) // count


def test_precomputed_files_hold_latents_and_text() -> None:
    bundle = make_tiny_bundle(0)
    data = latents_file(bundle, clip(1))
    assert latents_file(bundle, clip(1)) == data
    tensors = load_tensors(data)
    expected = encode_any(bundle.vae, clip(1))
    assert set(tensors) == {*expected, "text_LD"}
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    text = encode_prompts(bundle.tokenizer, bundle.text_encoder, [clip(1).caption])[0]
    assert torch.equal(tensors["text_LD"], text.half())
