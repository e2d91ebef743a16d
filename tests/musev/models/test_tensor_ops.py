from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from musev.errors import ShapeError
from musev.models import tensor_ops
from musev.models.blocks import sinusoid
from tests.goldens import (
    GOLDENS,
    have_goldens,
    load_tensors,
    model_case,
    model_cases,
    require_goldens,
)


def adain_conditioned(i: dict[str, Tensor], c: dict[str, Any]) -> Tensor:
    """The original's helper: changed frames alone, or written back; 4-D input comes back as is."""
    x = i["tensor"]
    if x.ndim == 4:
        return x
    changed = tensor_ops.match_frames(x, i["src_index"], i["dst_index"])
    if not c.get("keep_dim", True):
        return changed
    return tensor_ops.place_at_index(x, i["src_index"], changed, dim=2)


def concat(i: dict[str, Tensor], c: dict[str, Any]) -> Tensor:
    pair = [i["data1"], i["data2"]]
    return torch.cat(pair[::-1] if c.get("method") == "first_in_last_out" else pair, c["dim"])


FUNCTIONS = {
    "timesteps_sinusoid": lambda i, c: sinusoid(i["t"], c["num_channels"]),
    "get_2d_sincos_pos_embed": lambda i, c: tensor_ops.position_grid_2d(
        c["embed_dim"],
        width=c["grid_size_w"],
        height=c["grid_size_h"],
        max_length=c["max_length"] if c["norm_length"] else None,
    ),
    "resize_spatial_position_emb": lambda i, c: tensor_ops.resize_position_grid(
        i["emb"], width=c["width"], height=c["height"], scale=c["scale"]
    ),
    "adaptive_instance_normalization": lambda i, c: tensor_ops.match_statistics(i["src"], i["dst"]),
    "adaptive_instance_normalization_with_ref": lambda i, c: tensor_ops.match_statistics_guided(
        i["src"], i["dst"], style_fidelity=c["style_fidelity"]
    ),
    "batch_adain_conditioned_tensor": adain_conditioned,
    "align_repeat_tensor_single_dim": lambda i, c: tensor_ops.repeat_to_length(
        i["src"], c["target_length"], dim=c["dim"], num_base=c.get("n_src_base_length", 1)
    ),
    "batch_concat_two_tensor_with_index": lambda i, c: tensor_ops.concat_at_index(
        i["data1"], i["data1_index"], i["data2"], i["data2_index"], dim=c["dim"]
    ),
    "batch_index_select": lambda i, c: tensor_ops.select_at_index(
        i["tensor"], i["index"], dim=c["dim"]
    ),
    "batch_index_copy": lambda i, c: tensor_ops.place_at_index(
        i["tensor"], i["index"], i["source"], dim=c["dim"]
    ),
    "batch_index_fill": lambda i, c: tensor_ops.fill_at_index(
        i["tensor"], i["index"], c["value"], dim=c["dim"]
    ),
    "concat_two_tensor": concat,
    "interwine_two_tensor": lambda i, c: tensor_ops.interleave(
        i["data1"], i["data2"], dim=c["dim"]
    ),
    "fuse_part_tensor": lambda i, c: tensor_ops.blend_overlap(
        i["src"],
        i["dst"],
        overlap=c["overlap"],
        weight=c.get("weight", 0.5),
        skip=c.get("skip_step", 0),
    ),
}
CASES = [
    name
    for name in model_cases("function")
    if str(name).removeprefix("fn_").partition("__")[0] in FUNCTIONS
]


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_function_matches_upstream_exactly(name: str) -> None:
    case, _, io = model_case(name)
    call = case["call"]
    inputs = {key.removeprefix("in."): value for key, value in io.items() if key.startswith("in.")}
    before = {key: value.clone() for key, value in inputs.items()}
    out = FUNCTIONS[call["fn"]](inputs, call)
    # numpy's sine in float64 (the recorded run) and torch's differ in the last bits.
    atol = 1e-12 if out.dtype == torch.float64 else 0
    torch.testing.assert_close(out, io["out.out"], rtol=0, atol=atol)
    for key, value in inputs.items():
        assert torch.equal(value, before[key]), f"{key} was changed"


def test_every_helper_has_a_case() -> None:
    if len(CASES) > 1:
        seen = {str(name).removeprefix("fn_").partition("__")[0] for name in CASES}
        assert seen == set(FUNCTIONS)


def test_per_clip_index_places_and_picks_the_same_entries() -> None:
    x = torch.randn(2, 5, 3)
    index = torch.tensor([[0, 3], [4, 1]])
    picked = tensor_ops.select_at_index(x, index, dim=1)
    assert torch.equal(picked[1, 0], x[1, 4])
    assert torch.equal(tensor_ops.place_at_index(x, index, picked, dim=1), x)
    filled = tensor_ops.fill_at_index(x, index, 7.0, dim=1)
    assert (filled == 7).sum() == 2 * 2 * 3
    assert (filled[0, 3] == 7).all()


def test_matched_frames_have_the_targets_statistics_exchanged() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 8, 8) * 3 + 1
    out = tensor_ops.match_frames(x, torch.tensor([1, 2, 3]), torch.tensor([0]))
    axes = (2, 3, 4)
    variance, mean = torch.var_mean(x[:, :, :1], axes, correction=0)
    new_variance, new_mean = torch.var_mean(out, axes, correction=0)
    torch.testing.assert_close(new_mean, variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(new_variance, mean, rtol=1e-5, atol=0)


def test_position_grid_needs_a_multiple_of_four() -> None:
    with pytest.raises(ShapeError, match="multiple of 4"):
        tensor_ops.position_grid_2d(6, width=2, height=2)


HELPERS = GOLDENS / "pipeline" / "functions" / "tensor_helpers.safetensors"
INPUTS = {"adain.ref", "adain.src", "align.src", "cat.cond", "cat.lat", "fuse.dst", "fuse.src"}


def helper_cases() -> list[str]:
    """Names of the recorded results, read from the file's header."""
    if not have_goldens():
        return ["missing"]
    with HELPERS.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sorted(set(header) - INPUTS - {"__metadata__", "cat.clobber"})


def call_helper(name: str, io: dict[str, Tensor]) -> Tensor:
    """Compute what a case's name says: ``align.5``, ``cat.i0_5``, ``fuse.ov1.w0.01.s1``."""
    kind, _, rest = name.partition(".")
    if kind == "adain":
        return tensor_ops.match_statistics(io["adain.src"], io["adain.ref"])
    if kind == "align":
        return tensor_ops.repeat_to_length(io["align.src"], int(rest), dim=0)
    if kind == "fuse":
        overlap, weight, skip = re.fullmatch(r"ov(\d+)\.w([\d.]+)\.s(\d+)", rest).groups()
        return tensor_ops.blend_overlap(
            io["fuse.src"],
            io["fuse.dst"],
            overlap=int(overlap),
            weight=float(weight),
            skip=int(skip),
        )
    given = [int(place) for place in rest.removeprefix("i").split("_")]
    length = io["cat.lat"].shape[2] + io["cat.cond"].shape[2]
    others = [place for place in range(length) if place not in given]
    return tensor_ops.concat_at_index(
        io["cat.lat"], torch.tensor(others), io["cat.cond"], torch.tensor(given), dim=2
    )


@pytest.mark.parity
@pytest.mark.parametrize("name", helper_cases())
def test_helpers_of_the_pipeline_equal_the_originals(name: str) -> None:
    require_goldens()
    io = load_tensors(HELPERS)
    assert torch.equal(call_helper(name, io), io[name])


@pytest.mark.parity
def test_a_condition_frame_of_the_pipeline_is_never_overwritten() -> None:
    """The original writes frames at 2..5 whatever the conditions' places: one of them is lost."""
    require_goldens()
    io = load_tensors(HELPERS)
    cond, lat = io["cat.cond"], io["cat.lat"]
    joined = call_helper("cat.i0_5", io)
    assert torch.equal(joined[:, :, 5], cond[:, :, 1])
    assert torch.equal(joined[:, :, 1:5], lat)
    assert not torch.equal(io["cat.clobber"][:, :, 5], cond[:, :, 1])
