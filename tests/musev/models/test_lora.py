"""LoRA merges against the original's recorded weights, and what the pure functions promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from musev.errors import WeightsError
from musev.models.lora import (
    BLOCK_PRESETS,
    kohya_block_deltas,
    kohya_deltas,
    merge_deltas,
    motion_deltas,
)
from tests.goldens import (
    GOLDENS,
    load_tensors,
    model_case,
    model_cases,
    model_weights,
    pipeline_case,
)

State = dict[str, Tensor]


def _named(io: State, kind: str) -> State:
    start = f"{kind}."
    return {
        key.removeprefix(start).replace("|", "."): value
        for key, value in io.items()
        if key.startswith(start)
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("lora_merge"))
def test_merge_equals_the_recorded_weights(name: str) -> None:
    case, _, io = model_case(name)
    weights = model_weights(case)
    function = {"convert_lora": kohya_deltas, "convert_motion_lora": motion_deltas}
    deltas = function[case["call"]["fn"]](_named(io, "in"), weights, alpha=case["call"]["alpha"])
    merged, expected = merge_deltas(weights, deltas), _named(io, "out")
    assert merged.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(merged[key], value, atol=1e-5, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("lora_merge_blocks"))
def test_block_merge_equals_the_recorded_weights(name: str) -> None:
    case, _, io = model_case(name)
    weights, call = model_weights(case), case["call"]
    deltas = kohya_block_deltas(
        _named(io, "in"), weights, alpha=call["alpha"], preset=call["lora_block_weight_str"]
    )
    merged, expected = merge_deltas(weights, deltas), _named(io, "out")
    assert merged.keys() == expected.keys()
    for key, value in expected.items():
        # The change is rounded to half precision: another order of sums moves it by one unit.
        torch.testing.assert_close(merged[key], value, atol=1e-3, rtol=0)
        assert (merged[key] - value).abs().mean() < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("name", ["lora_one_all", "lora_two_block_weights"])
def test_merges_equal_the_pipelines_weights(name: str) -> None:
    case, tensors = pipeline_case(name)
    folder = GOLDENS / "pipeline" / "components"
    unet = load_tensors(folder / "unet_musev" / "diffusion_pytorch_model.safetensors")
    text = load_tensors(folder / "text_encoder" / "model.safetensors")
    networks = {
        "unet": {key: value.float() for key, value in unet.items()},
        "text_encoder": {
            key.removeprefix("text_model."): value.float() for key, value in text.items()
        },
    }
    for file, options in case["components"]["lora"]:
        lora = load_tensors(folder / "lora" / file)
        for network, weights in networks.items():
            deltas = kohya_block_deltas(
                lora,
                weights,
                alpha=options["strength"] + options.get("strength_offset", 0.0),
                preset=options.get("lora_block_weight", "ALL"),
                text_encoder=network == "text_encoder",
            )
            weights.update(merge_deltas(weights, deltas))
    for recorded in case["record_weights"]:
        network, _, key = recorded.partition(".")
        found = networks[network][key.removeprefix("text_model.")]
        expected = tensors[f"weights_after.{recorded}"]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def _pair(module: str, shape: tuple[int, int], rank: int = 2) -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{module}.lora_down.weight": torch.randn(rank, shape[1], generator=generator),
        f"{module}.lora_up.weight": torch.randn(shape[0], rank, generator=generator),
    }


WEIGHTS = {
    "down_blocks.0.attentions.0.proj_in.weight": torch.zeros(4, 6),
    "down_blocks.0.attentions.0.proj_in.bias": torch.zeros(4),
    "conv_in.weight": torch.zeros(3, 5),
}
ATTENTION = "lora_unet_down_blocks_0_attentions_0_proj_in"


def test_nothing_given_is_changed_and_old_entries_undo() -> None:
    weights = {key: value.clone() for key, value in WEIGHTS.items()}
    merged = merge_deltas(weights, kohya_deltas(_pair(ATTENTION, (4, 6)), weights))
    assert list(merged) == ["down_blocks.0.attentions.0.proj_in.weight"]
    assert merged["down_blocks.0.attentions.0.proj_in.weight"].abs().min() > 0
    assert all(torch.equal(weights[key], WEIGHTS[key]) for key in WEIGHTS)


def test_the_files_scale_counts_only_in_block_merges() -> None:
    lora = _pair(ATTENTION, (4, 6)) | {f"{ATTENTION}.alpha": torch.tensor(1.0)}
    plain = kohya_deltas(lora, WEIGHTS, alpha=1.0)
    scaled = kohya_block_deltas(lora, WEIGHTS, alpha=1.0)
    for key, value in plain.items():
        torch.testing.assert_close(scaled[key], (value / 2).half().float())


def test_modules_outside_the_blocks_always_count() -> None:
    lora = _pair(ATTENTION, (4, 6)) | _pair("lora_unet_conv_in", (3, 5))
    assert set(kohya_block_deltas(lora, WEIGHTS, alpha=1.0, preset="face")) == {"conv_in.weight"}


def test_half_precision_weights_keep_their_type() -> None:
    weights = {key: value.half() for key, value in WEIGHTS.items()}
    merged = merge_deltas(weights, kohya_deltas(_pair("lora_unet_conv_in", (3, 5)), weights))
    assert merged["conv_in.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    ("lora", "phrase"),
    [
        (_pair("lora_unet_nowhere", (4, 6)), "lora_unet_nowhere"),
        ({f"{ATTENTION}.lora_down.weight": torch.zeros(2, 6)}, "has no up"),
        ({f"{ATTENTION}.hada_w1": torch.zeros(2, 6)}, "hada_w1"),
        (_pair(ATTENTION, (4, 5)), r"\[4, 5\]"),
    ],
)
def test_files_that_do_not_fit_name_the_key(lora: State, phrase: str) -> None:
    with pytest.raises(WeightsError, match=phrase):
        kohya_block_deltas(lora, WEIGHTS, alpha=1.0)


def test_unknown_presets_are_listed() -> None:
    with pytest.raises(WeightsError, match="OUTALL"):
        kohya_block_deltas({}, WEIGHTS, alpha=1.0, preset="NONE")
    assert all(len(factors) == 17 for factors in BLOCK_PRESETS.values())


def test_motion_keys_must_end_as_expected() -> None:
    with pytest.raises(WeightsError, match="to_q_lora"):
        motion_deltas({"a.to_q_lora.weight": torch.zeros(1, 1)}, {})
