"""Encoded clips: what is stored is what a clip encodes to, and rounds hold every clip once."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch
from diffusers import AutoencoderKL

from musev.errors import ConfigError
from musev.models.vae import encode_frames
from musev.training.latents import (
    ClipSource,
    LatentStore,
    encode_clip,
    epoch_order,
    mark_of,
    write_whole,
)
from musev.training.vae import make_vae

SOURCE = ClipSource(seed=3, num_frames=2, size_px=32)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return make_vae((8, 8, 8, 8)).eval()


def test_latents_are_those_of_inference(vae: AutoencoderKL) -> None:
    clip = SOURCE.draw(0)
    found = encode_clip(vae, clip, reference=True)
    frames = encode_frames(vae, clip.frames_TYXC)[0]
    torch.testing.assert_close(found["latents_CTHW"].float(), frames, atol=2e-3, rtol=2e-3)
    reference = encode_frames(vae, clip.reference_YXC[None])[0, :, 0]
    torch.testing.assert_close(found["reference_CHW"].float(), reference, atol=2e-3, rtol=2e-3)
    share = clip.mask_TYX[:, :8, :8].astype(float).mean((1, 2))
    assert found["person_THW"][:, 0, 0].tolist() == pytest.approx(share.tolist(), abs=0.51)


@pytest.mark.parametrize("place", ["file", "memory"])
def test_files_are_written_once_and_read_back(
    place: str, vae: AutoencoderKL, tmp_path: Path
) -> None:
    uri = str(tmp_path) if place == "file" else f"memory://latents-{tmp_path.name}"
    store = LatentStore(uri, SOURCE, clips_per_file=2)
    assert [store.encode(vae, number) for number in (0, 1, 0)] == [True, True, False]
    assert store.load(2) == 4
    for index in (0, 3):
        clip = SOURCE.draw(index)
        assert store.caption(index) == clip.caption
        expected = encode_clip(vae, clip, reference=True)
        rows = store.rows([index])
        assert all(torch.equal(rows[name][0], value.float()) for name, value in expected.items())
    assert store.load(1) == 2, "more files than asked for change nothing"


def test_two_runs_may_encode_the_same_file_at_once(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writes all of it while the first is about to rename its own."""
    first, second = (LatentStore(str(tmp_path), SOURCE, clips_per_file=1) for _ in range(2))
    move = first._files.mv

    def late(source: str, target: str) -> None:
        monkeypatch.undo()
        assert second.encode(vae, 0)
        move(source, target)

    monkeypatch.setattr(first._files, "mv", late)
    assert first.encode(vae, 0)
    assert first.load(1) == 1
    assert [path.name for path in tmp_path.iterdir()] == [Path(first.path(0)).name]


def test_a_file_that_is_there_already_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some stores do not rename over a file; then the other's is kept."""
    files, target = fsspec.filesystem("file"), tmp_path / "clips"

    def refuse(source: str, target: str) -> None:
        raise FileExistsError(target)

    monkeypatch.setattr(files, "mv", refuse)
    with pytest.raises(FileExistsError):
        write_whole(files, str(target), b"mine")
    target.write_bytes(b"theirs")
    write_whole(files, str(target), b"mine")
    assert target.read_bytes() == b"theirs"
    assert len(list(tmp_path.glob("*.part"))) == 1, "of the write that failed alone"


def test_a_missing_file_is_named(vae: AutoencoderKL, tmp_path: Path) -> None:
    store = LatentStore(str(tmp_path), SOURCE, clips_per_file=1)
    store.encode(vae, 0)
    with pytest.raises(ConfigError, match="00001"):
        store.load(2)


def test_names_tell_apart_whatever_decides_the_content(vae: AutoencoderKL) -> None:
    sources = [
        SOURCE,
        ClipSource(seed=4, num_frames=2, size_px=32),
        ClipSource(seed=3, num_frames=3, size_px=32),
        ClipSource(seed=3, num_frames=2, size_px=64),
        ClipSource(seed=3, num_frames=2, size_px=32, held_out=True),
        ClipSource(seed=3, num_frames=2, size_px=32, references=False),
    ]
    paths = {LatentStore("/x", source).path(0) for source in sources}
    paths |= {LatentStore("/x", SOURCE, clips_per_file=8).path(0)}
    paths |= {LatentStore("/x", SOURCE, vae_mark=mark_of(vae)).path(0)}
    assert len(paths) == 8


def test_the_mark_is_of_the_encoder_alone(vae: AutoencoderKL) -> None:
    before = mark_of(vae)
    with torch.no_grad():
        vae.decoder.conv_in.weight += 1
        assert mark_of(vae) == before
        vae.quant_conv.bias += 1
        assert mark_of(vae) != before
        vae.quant_conv.bias -= 1


def test_every_round_holds_each_clip_once_in_another_order() -> None:
    series = epoch_order(10, seed=1, first=0, count=30)
    rounds = [series[n : n + 10] for n in (0, 10, 20)]
    assert all(sorted(each) == list(range(10)) for each in rounds)
    assert rounds[0] != rounds[1]
    assert epoch_order(10, seed=1, first=7, count=9) == series[7:16]
    assert epoch_order(10, seed=2, first=0, count=10) != rounds[0]
