"""Reading, checking, renaming and digesting weights files; damaged and hostile files included."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from musev.errors import WeightsError
from musev.weights import (
    check_keys,
    find_weights,
    kohya_names,
    load_groups,
    load_state_dict,
    rename_ip_adapter,
    rename_vae,
)
from tests.goldens import GOLDENS, load_tensors, model_cases, model_index, require_goldens

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def test_importing_weights_leaves_torch_alone() -> None:
    code = "import sys, musev.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pt"])
def test_files_read_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(STATE, path) if path.suffix == ".safetensors" else torch.save(STATE, path)
    found = load_state_dict(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)
    assert found["b"].dtype == torch.float16


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
@pytest.mark.parametrize("keep", [0, 10, -20])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    big = {"a": torch.randn(300)}
    save_file(big, path) if path.suffix == ".safetensors" else torch.save(big, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=name):
        load_state_dict(path)


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, protocol: str) -> None:
    path, target = tmp_path / "bad.bin", tmp_path / "ran"
    if protocol == "torch":
        torch.save({"a": _Hostile(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": _Hostile(target)}, protocol=2))
    with pytest.raises(WeightsError, match=r"bad\.bin: refused"):
        load_state_dict(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "phrase"),
    [({"a": {"b": torch.ones(1)}}, "not a flat"), ([torch.ones(1)], "holds a list")],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, phrase: str) -> None:
    torch.save(content, tmp_path / "w.bin")
    with pytest.raises(WeightsError, match=phrase):
        load_state_dict(tmp_path / "w.bin")


@pytest.mark.parametrize(
    ("name", "phrase"), [("none.bin", "no weights file"), ("w.txt", "unknown")]
)
def test_missing_and_unknown_files_are_named(tmp_path: Path, name: str, phrase: str) -> None:
    (tmp_path / "w.txt").write_text("x")
    with pytest.raises(WeightsError, match=phrase):
        load_state_dict(tmp_path / name)


def test_groups_come_from_both_kinds_of_file(tmp_path: Path) -> None:
    groups = {"image_proj": {"proj.weight": torch.ones(2)}, "ip_adapter": {"1.x": torch.zeros(1)}}
    torch.save(groups, tmp_path / "g.bin")
    flat = {
        f"{group}.{key}": value for group, part in groups.items() for key, value in part.items()
    }
    save_file(flat, tmp_path / "g.safetensors")
    for name in ("g.bin", "g.safetensors"):
        found = load_groups(tmp_path / name)
        assert {group: list(part) for group, part in found.items()} == {
            group: list(part) for group, part in groups.items()
        }


def test_safetensors_is_preferred_and_absence_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="unet: no weights file"):
        find_weights(tmp_path, where="unet")
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    assert find_weights(tmp_path, where="unet").suffix == ".bin"
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    assert find_weights(tmp_path, where="unet").suffix == ".safetensors"
    with pytest.raises(WeightsError, match="vae: no folder"):
        find_weights(tmp_path / "nowhere", where="vae")


def test_all_misfits_are_listed_together() -> None:
    expected = {"same": (1,), "gone": (2,), "grown": (3, 3)}
    found = {"same": (1,), "grown": (3, 4), "new": (5,)}
    with pytest.raises(WeightsError) as caught:
        check_keys(expected, found, "unet at /w")
    message = str(caught.value)
    for phrase in (
        "unet at /w",
        "1 missing: gone",
        "1 extra: new",
        "grown: file [3, 4], network [3",
    ):
        assert phrase in message
    check_keys(expected, expected, "unet")


def test_long_lists_are_cut_with_a_count() -> None:
    with pytest.raises(WeightsError, match=r"100 missing: k0, .* and 70 more") as caught:
        check_keys({f"k{i}": (1,) for i in range(100)}, {}, "unet")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "encoder.mid_block.attentions.0.query.weight",
            "encoder.mid_block.attentions.0.to_q.weight",
        ),
        ("a.attentions.0.proj_attn.bias", "a.attentions.0.to_out.0.bias"),
        ("a.attentions.0.to_q.weight", "a.attentions.0.to_q.weight"),
        ("decoder.key.weight", "decoder.key.weight"),
    ],
)
def test_old_vae_names(old: str, new: str) -> None:
    assert rename_vae(old) == new


def test_kohya_names_of_weights_only() -> None:
    names = ["down_blocks.0.proj_in.weight", "down_blocks.0.proj_in.bias"]
    assert kohya_names(names, "lora_unet_") == {"lora_unet_down_blocks_0_proj_in": names[0]}


def _full_size(name: str) -> dict:
    require_goldens()
    return json.loads((GOLDENS / "fullsize" / name).read_text())


@pytest.mark.parity
@pytest.mark.parametrize("face", [False, True])
def test_ip_adapter_numbers_at_full_size(face: bool) -> None:
    recorded = _full_size("ip_adapter_key_mapping.json")
    pairs = recorded["unet_key -> ip_adapter_key" + (" (face)" if face else "")]
    unet = _full_size("unet_musev_referencenet_with_ip_adapter_face.json")["tensors"]
    renamed = rename_ip_adapter(pairs.values(), unet, face=face)
    assert renamed == {number: key.replace(".processor.", ".") for key, number in pairs.items()}
    assert set(renamed.values()) <= set(unet)


@pytest.mark.parity
@pytest.mark.parametrize("name", model_cases("ip_adapter_kv_load"))
def test_ip_adapter_weights_reach_the_recorded_keys(name: str) -> None:
    require_goldens()
    case = model_index()[name]
    io = load_tensors(GOLDENS / "models" / case["io"])
    given = {key[3:].replace("|", "."): value for key, value in io.items() if key[:3] == "in."}
    expected = {key[4:].replace("|", "."): value for key, value in io.items() if key[:4] == "out."}
    queries = {f"{key.split('.attn2.')[0]}.attn2.to_q.weight" for key in expected}
    temporal = {"down_blocks.0.temp_attentions.0.transformer_blocks.0.attn2.to_q.weight"}
    renamed = rename_ip_adapter(given, queries | temporal, face=case["call"]["face"])
    found = {renamed[key]: value for key, value in given.items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["2.to_k_ip.weight", "33.to_k_ip.weight", "1.to_q.weight", "x"])
def test_an_ip_adapter_key_without_a_layer_is_named(name: str) -> None:
    unet = ["mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"]
    with pytest.raises(WeightsError, match=name):
        rename_ip_adapter([name], unet)
