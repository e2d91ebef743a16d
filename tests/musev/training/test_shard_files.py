from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from musev.config import EncoderConfig
from musev.errors import MediaError
from musev.synthetic.clips import draw_clip
from musev.training.shard_files import (
    INDEX_FIELDS,
    INDEX_SCHEMA,
    MEMBERS,
    DatasetClip,
    clip_files,
    decode_mask,
    describe_tar,
    index_row,
    read_clip,
    write_tar,
)

ENCODER = EncoderConfig(preset="ultrafast", crf=10)


def drawn(index: int = 0) -> DatasetClip:
    clip = draw_clip(3, index, height=32, width=48, num_frames=3)
    return DatasetClip(
        key=f"{index:08d}",
        clip_id=f"clip {index}",
        caption=clip.caption,
        attributes={"shirt": clip.attributes.shirt_color},
        frames_TYXC=clip.frames_TYXC,
        fps=8.0,
        facts={"seed": 3},
        control_TYXC=clip.control_TYXC,
        reference_YXC=clip.reference_YXC,
        mask_TYX=clip.mask_TYX,
        points_TJ2=clip.points_TJ2,
        visible_TJ=clip.visible_TJ,
    )


def small_tar() -> tuple[bytes, list, list[dict[str, bytes]]]:
    files = [clip_files(drawn(index), ENCODER) for index in range(2)]
    target = io.BytesIO()
    entries = write_tar(target, [(f"{i:08d}", f) for i, f in enumerate(files)])
    return target.getvalue(), entries, files


def test_a_clip_comes_back_from_its_files() -> None:
    clip = drawn()
    back = read_clip(clip_files(clip, ENCODER))
    for name in ("key", "clip_id", "caption", "attributes", "fps"):
        assert getattr(back, name) == getattr(clip, name)
    assert back.facts["seed"] == 3
    np.testing.assert_array_equal(back.mask_TYX, clip.mask_TYX)
    np.testing.assert_array_equal(back.reference_YXC, clip.reference_YXC)
    np.testing.assert_array_equal(back.visible_TJ, clip.visible_TJ)
    np.testing.assert_allclose(back.points_TJ2, clip.points_TJ2, atol=0.00501)
    for ours, theirs in (
        (back.frames_TYXC, clip.frames_TYXC),
        (back.control_TYXC, clip.control_TYXC),
    ):
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).mean() < 12  # half the colour resolution is lost


def test_what_a_clip_lacks_makes_no_file() -> None:
    bare = dataclasses.replace(
        drawn(),
        control_TYXC=None,
        reference_YXC=None,
        mask_TYX=None,
        points_TJ2=None,
        visible_TJ=None,
    )
    files = clip_files(bare, ENCODER, {"latents.safetensors": b"x"})
    assert list(files) == ["json", "mp4", "latents.safetensors"]
    assert "keypoints" not in json.loads(files["json"])
    back = read_clip(files)
    assert back.control_TYXC is back.reference_YXC is back.mask_TYX is back.points_TJ2 is None


def test_every_file_that_can_occur_is_described() -> None:
    assert set(clip_files(drawn(), ENCODER)) <= set(MEMBERS)


def test_the_same_samples_give_the_same_tar_and_plain_tarfile_reads_it() -> None:
    data, _, files = small_tar()
    assert small_tar()[0] == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
        assert [info.name for info in infos] == [
            f"{i:08d}.{suffix}" for i in range(2) for suffix in files[i]
        ]
        assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in infos} == {
            (0, 0, 0, "", "", 0o644)
        }
        for info in infos:
            key, _, suffix = info.name.partition(".")
            assert tar.extractfile(info).read() == files[int(key)][suffix]


def test_offsets_lead_to_the_files_and_a_cut_out_sample_is_a_tar() -> None:
    data, entries, files = small_tar()
    for entry, expected in zip(entries, files, strict=True):
        for suffix, (offset, size) in entry.members.items():
            assert data[offset : offset + size] == expected[suffix]
        piece = data[entry.offset : entry.offset + entry.size]
        with tarfile.open(fileobj=io.BytesIO(piece)) as tar:
            assert tar.getnames() == [f"{entry.key}.{suffix}" for suffix in expected]


def test_a_tar_describes_itself_as_its_writer_did() -> None:
    data, entries, files = small_tar()
    described = describe_tar(io.BytesIO(data))
    assert [entry for entry, _ in described] == entries
    assert [row for _, row in described] == [
        index_row(entry, sample) for entry, sample in zip(entries, files, strict=True)
    ]


def test_an_index_row_fits_the_schema() -> None:
    _, entries, files = small_tar()
    row = index_row(entries[1], files[1]) | {"shard": "shards/a.tar"}
    assert set(row) == set(INDEX_FIELDS)
    (back,) = pa.Table.from_pylist([row], schema=INDEX_SCHEMA).to_pylist()
    assert back == row
    assert back["sha256"] == hashlib.sha256(files[1]["mp4"]).hexdigest()
    assert (back["num_frames"], back["width"], back["height"], back["fps"]) == (3, 48, 32, 8.0)
    assert (back["seed"], back["source"], back["licence"]) == (3, None, None)
    assert json.loads(back["attributes"])["shirt"]


def test_a_mask_of_another_length_is_refused() -> None:
    files = clip_files(drawn(), ENCODER)
    with pytest.raises(MediaError, match="5 frames"):
        decode_mask(files["mask.png"], 5)
