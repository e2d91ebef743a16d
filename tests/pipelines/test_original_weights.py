from __future__ import annotations

from pathlib import Path

import pytest

from musev.errors import ConfigError
from musev.registry import get_profile
from pipelines.musev_flags import read_command
from pipelines.original_weights import (
    OriginalWeights,
    Paths,
    check_name,
    control_names,
    find_path,
    keeps_habits,
)

BASE = "text2video.py -test_data_path tasks.yaml"
VIDEO = "video2video.py -test_data_path tasks.yaml"


def weights(line: str, project: str = "/musev", profile: str = "upstream") -> OriginalWeights:
    return OriginalWeights(
        command=read_command([line]), paths=Paths(project), profile=get_profile(profile)
    )


def settings(line: str, project: str = "/musev", profile: str = "upstream") -> dict[str, str]:
    found = weights(line, project, profile)
    return found.settings(found.models()[0][1])


@pytest.mark.parametrize(
    ("project", "path", "expected"),
    [
        ("/musev", "./checkpoints/vae", "/musev/checkpoints/vae"),
        (".", "configs/t.py", "configs/t.py"),
        ("/musev", "/models/vae", "/models/vae"),
        ("s3://bucket/musev", "./a/../b", "s3://bucket/musev/b"),
        ("/musev", "hf://owner/name", "hf://owner/name"),
    ],
)
def test_relative_paths_start_in_the_originals_folder(
    project: str, path: str, expected: str
) -> None:
    assert find_path(project, path) == expected


def test_media_become_uris() -> None:
    paths = Paths("/musev")
    assert paths.media(["./a.png", "s3://x/b.png"]) == ["file:///musev/a.png", "s3://x/b.png"]
    assert Paths("s3://bucket").media("a.png") == "s3://bucket/a.png"
    assert paths.media(None) is None


def test_all_parts_of_the_readmes_command() -> None:
    """Upstream README, musev_referencenet, text2video."""
    line = (
        f"{BASE} --sd_model_name majicmixRealv6Fp16 --unet_model_name musev_referencenet "
        "--referencenet_model_name musev_referencenet --ip_adapter_model_name musev_referencenet "
        "--vision_clip_extractor_class_name ImageClipVisionFeatureExtractor "
        "--vision_clip_model_path ./checkpoints/IP-Adapter/models/image_encoder"
    )
    motion = "/musev/checkpoints/motion/musev_referencenet"
    assert settings(line) == {
        "weights.t2i": "/musev/checkpoints/t2i/sd1.5/majicmixRealv6Fp16",
        "weights.vae": "/musev/checkpoints/vae/sd-vae-ft-mse",
        "weights.motion": motion,
        "weights.motion_name": "musev_referencenet",
        "weights.referencenet": motion,
        "weights.image_prompt": f"{motion}/ip_adapter_image_proj.bin",
        "weights.image_encoder": "/musev/checkpoints/IP-Adapter/models/image_encoder",
    }


def test_parts_that_are_not_named_are_off() -> None:
    found = settings(f"{BASE} --unet_model_name musev")
    assert found["weights.motion"] == "/musev/checkpoints/motion/musev"
    assert {found[f"weights.{part}"] for part in ("referencenet", "image_prompt")} == {"none"}
    assert "weights.face" not in found
    assert "loras" not in found


def test_an_image_prompt_without_its_extractor_is_off_and_told() -> None:
    line = f"{BASE} --ip_adapter_model_name musev_referencenet"
    assert settings(line)["weights.image_prompt"] == "none"
    assert "computes none" in weights(line).notes()[0]
    assert weights(BASE).notes() == []


def test_lcm_and_face() -> None:
    found = settings(f"{BASE} --lcm_model_name lcm --ip_adapter_face_model_name IPAdapterFaceID")
    lcm = "/musev/checkpoints/lcm/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"
    assert (found["loras"], found["sampling.solver"]) == (f"{lcm}:1:ALL", "lcm")
    assert found["weights.face"].endswith("IP-Adapter/ip-adapter-faceid_sd15.bin")


def test_each_controlnet_is_that_of_its_control_name() -> None:
    line = f"{VIDEO} --controlnet_name dwpose_body_hand,depth"
    assert control_names(read_command([line])) == ["dwpose_body_hand", "depth"]
    found = settings(line)
    assert found["weights.controlnets.openpose"] == "hf://lllyasviel/control_v11p_sd15_openpose"
    assert "weights.controlnets.depth" in found
    assert settings(f"{VIDEO} --pose_guider_model_path pg")["weights.pose_guider"] == "/musev/pg"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / "T2I_all_model.py").write_text(
        "import os\n"
        "D = os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../checkpoints')\n"
        "MODEL_CFG = {\n"
        "    'anime': {'sd': os.path.join(D, 'anime'), 'vae': os.path.join(D, 'vae-x'),\n"
        "              'lora': {os.path.join(D, 'l.safetensors'):\n"
        "                       {'strength': 0.5, 'strength_offset': 0.25,\n"
        "                        'lora_block_weight': 'FACE'}}},\n"
        "    'real': {'sd': os.path.join(D, 'real')},\n"
        "    'broken': {},\n"
        "}\n"
    )
    return tmp_path


def test_the_users_own_table_is_read(project: Path) -> None:
    found = weights(f"{BASE} --sd_model_name real,anime", str(project))
    assert [name for name, _ in found.models()] == ["anime", "real"]
    anime, real = (found.settings(entry) for _, entry in found.models())
    assert anime["weights.t2i"] == f"{project}/checkpoints/anime"
    assert anime["weights.vae"] == f"{project}/checkpoints/vae-x"
    assert anime["loras"] == f"{project}/checkpoints/l.safetensors:0.75:FACE"
    assert anime["weights.lora_merge"] == "upstream"
    assert real["weights.vae"] == f"{project}/checkpoints/vae/sd-vae-ft-mse"
    assert "loras" not in real
    ours = weights(f"{BASE} --sd_model_name anime", str(project), "musev")
    assert "weights.lora_merge" not in ours.settings(ours.models()[0][1])


def test_a_models_folder_in_place_of_a_table() -> None:
    line = f"{BASE} --sd_model_name None --sd_model_cfg_path /models/dream.v8/"
    ((name, entry),) = weights(line).models()
    assert (name, entry) == ("dream", {"sd": "/models/dream.v8/"})
    found = settings(f"{line} --unet_model_cfg_path /models/motion --unet_model_name musev")
    assert (found["weights.motion"], found["weights.motion_name"]) == ("/models/motion", "musev")


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        (f"{BASE} --sd_model_name majicmix", "Did you mean 'majicmixRealv6Fp16'"),
        (f"{BASE} --unet_model_name musev_reference", "--unet_model_name: no 'musev_reference'"),
        (f"{BASE} --unet_model_name all", "takes one name"),
        (f"{BASE} --sd_model_cfg_path /models/x", "Give --sd_model_name None"),
        (f"{BASE} --sd_model_cfg_path gone.py", "cannot read the table /musev/gone.py"),
        (f"{VIDEO} --controlnet_name dwpose_body_hands", "Did you mean 'dwpose_body_hand'"),
        (f"{VIDEO} --controlnet_name all", "takes one name"),
    ],
)
def test_a_name_that_is_unknown_is_refused_with_its_neighbours(line: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        settings(line)


def test_an_incomplete_entry_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="no 'sd'"):
        settings(f"{BASE} --sd_model_name broken", str(project))


def test_only_the_upstream_profile_keeps_habits() -> None:
    assert keeps_habits(get_profile("upstream"))
    assert not keeps_habits(get_profile("musev"))
    check_name("a", ["a", "b"], flag="--x", where="t")
    with pytest.raises(ConfigError, match="takes one name"):
        check_name("a,b", ["a", "b"], flag="--x", where="t")
