"""LoRA files taking turns on one network: what is merged is right, what is undone is undone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from musev.errors import WeightsError
from musev.lora_choice import LoraChoice, LoraFile, LoraMerge, parse_lora
from musev.models.bundle import ModelBundle
from musev.models.lora_switch import LoraSwitch
from musev.models.tiny import make_tiny_bundle
from tests.adapter_goldens import recorded_loras
from tests.goldens import GOLDENS, load_tensors, pipeline_case

State = dict[str, Tensor]
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
UP = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FC1 = "encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return make_tiny_bundle(3)


def state_of(bundle: ModelBundle) -> State:
    nets = {"unet": bundle.unet, "text": bundle.text_encoder}
    return {
        f"{name}.{key}": value.clone()
        for name, net in nets.items()
        for key, value in net.state_dict().items()
    }


def lora_file(
    folder: Path, bundle: ModelBundle, seed: int, text: str = "", merge: LoraMerge = "exact"
) -> LoraFile:
    """Write a file that changes two layers of the U-Net and one of the text encoder."""
    generator = torch.Generator().manual_seed(seed)
    path = folder / f"lora-{seed}.safetensors"
    state = {}
    for prefix, net, layer in (
        ("lora_unet_", bundle.unet, TO_Q),
        ("lora_unet_", bundle.unet, UP),
        ("lora_te_text_model_", bundle.text_encoder, FC1),
    ):
        key = FC1 if net is bundle.text_encoder else layer
        shape = next(
            value.shape for name, value in net.named_parameters() if name.endswith(f"{key}.weight")
        )
        module = prefix + layer.replace(".", "_")
        state[f"{module}.lora_down.weight"] = torch.randn(2, shape[1], generator=generator)
        state[f"{module}.lora_up.weight"] = torch.randn(shape[0], 2, generator=generator)
        state[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(state, path)
    return LoraFile(parse_lora(f"{path}{text}", merge=merge), path)


def test_taking_turns_leaves_no_trace(bundle: ModelBundle, tmp_path: Path) -> None:
    switch = LoraSwitch(bundle.unet, bundle.text_encoder)
    plain = state_of(bundle)
    rows = [
        [lora_file(tmp_path, bundle, 1, ":0.8")],
        [lora_file(tmp_path, bundle, 2), lora_file(tmp_path, bundle, 1, ":-0.5:FACE")],
        [],
    ]
    first: list[State] = []
    for turn in range(12):
        switch.use(rows[turn % 3])
        now = state_of(bundle)
        if turn < 3:
            first.append(now)
        assert now.keys() == first[turn % 3].keys()
        assert all(torch.equal(now[key], first[turn % 3][key]) for key in now)
    assert all(torch.equal(first[2][key], plain[key]) for key in plain)
    changed = {key for key in plain if not torch.equal(first[0][key], plain[key])}
    assert {key.removeprefix("unet.") for key in changed if key.startswith("unet.")} == {
        f"{TO_Q}.weight",
        f"{UP}.weight",
    }
    assert len(changed) == 3
    assert switch.num_merges == 2  # every set once, whatever the turns


def test_a_merge_is_the_sum_of_its_files(bundle: ModelBundle, tmp_path: Path) -> None:
    switch = LoraSwitch(bundle.unet, bundle.text_encoder)
    weight = bundle.unet.get_parameter(f"{TO_Q}.weight")
    plain = weight.detach().clone()
    files = [lora_file(tmp_path, bundle, 1, ":0.8"), lora_file(tmp_path, bundle, 2, ":0.5")]
    expected = plain.clone()
    module = "lora_unet_" + TO_Q.replace(".", "_")
    for file in files:
        state = load_tensors(file.path)
        product = state[f"{module}.lora_up.weight"] @ state[f"{module}.lora_down.weight"]
        expected += file.choice.strength * product / 2  # alpha 1 over rank 2
    switch.use(files)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-6)
    switch.use([lora_file(tmp_path, bundle, 1, ":0")])  # strength 0 is no LoRA at all
    assert switch.in_use == ()
    assert torch.equal(weight, plain)

    halved = lora_file(tmp_path, bundle, 1, ":0.8", merge="upstream")
    switch.use([halved])
    rounded = weight.detach().clone()
    switch.use([lora_file(tmp_path, bundle, 1, ":0.8", merge="upstream_plain")])
    torch.testing.assert_close(weight.detach() - plain, 2 * (rounded - plain), atol=1e-2, rtol=1e-2)
    switch.use([files[0]])
    assert not torch.equal(weight, rounded)
    torch.testing.assert_close(weight.detach(), rounded, atol=2e-3, rtol=0)
    switch.use()


def test_merges_beyond_the_bound_are_made_again(bundle: ModelBundle, tmp_path: Path) -> None:
    switch = LoraSwitch(bundle.unet, bundle.text_encoder, kept_bytes=1)
    files = [lora_file(tmp_path, bundle, seed) for seed in (1, 2)]
    weight = bundle.unet.get_parameter(f"{TO_Q}.weight")
    seen = []
    for turn in range(4):
        switch.use([files[turn % 2]])
        seen.append(weight.detach().clone())
    assert switch.num_merges == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    switch.use()


def test_the_files_content_counts_not_its_place(bundle: ModelBundle, tmp_path: Path) -> None:
    switch = LoraSwitch(bundle.unet, bundle.text_encoder)
    one = lora_file(tmp_path, bundle, 1)
    other = tmp_path / "other.safetensors"
    other.write_bytes(one.path.read_bytes())
    switch.use([one])
    switch.use([LoraFile(parse_lora(str(other)), other)])
    assert switch.num_merges == 1
    switch.use([LoraFile(one.choice, one.path, digest="sha256:known")])
    assert switch.num_merges == 2
    switch.use()


def test_a_file_that_does_not_fit_leaves_the_own_weights(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    switch = LoraSwitch(bundle.unet, bundle.text_encoder)
    plain = state_of(bundle)
    good = lora_file(tmp_path, bundle, 1)
    bad = tmp_path / "sdxl.safetensors"
    save_file(
        {
            "lora_unet_nowhere.lora_down.weight": torch.zeros(1, 2),
            "lora_unet_nowhere.lora_up.weight": torch.zeros(2, 1),
        },
        bad,
    )
    switch.use([good])
    with pytest.raises(WeightsError, match=r"sdxl\.safetensors.*lora_unet_nowhere.*Diffusion 1\.5"):
        switch.use([good, LoraFile(LoraChoice(file="s3://b/sdxl.safetensors"), bad)])
    now = state_of(bundle)
    assert all(torch.equal(now[key], plain[key]) for key in plain)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["lora_one_all", "lora_two_block_weights", "lcm_lora_ref"])
def test_weights_equal_the_pipelines(name: str) -> None:
    from transformers import CLIPTextModel

    from musev.models.unet import UNet3DConditionModel

    case, tensors = pipeline_case(name)
    folder = GOLDENS / "pipeline" / "components"
    unet = UNet3DConditionModel.from_pretrained(folder / f"unet_{case['unet']}").float()
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    plain = {
        f"{name}.{key}": value.clone()
        for name, net in (("unet", unet), ("text_encoder", text))
        for key, value in net.state_dict().items()
    }
    switch = LoraSwitch(unet, text)
    switch.use(recorded_loras(case))
    after = {
        f"{name}.{key}": value
        for name, net in (("unet", unet), ("text_encoder", text))
        for key, value in net.state_dict().items()
    }

    def ours(key: str) -> str:
        return key if key in after else key.replace("text_model.", "", 1)

    recorded = case["record_weights"]
    assert recorded
    for key in recorded:
        # The change is rounded to half precision: another order of sums moves it by one unit.
        torch.testing.assert_close(
            after[ours(key)], tensors[f"weights_after.{key}"], atol=1e-3, rtol=0
        )
    changed = {key for key in plain if not torch.equal(plain[key], after[key])}
    assert changed == set(map(ours, case["result"]["weights_changed"]))
