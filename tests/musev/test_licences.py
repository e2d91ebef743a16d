"""Licences found beside files, by published names, or not at all; and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from musev.config import WeightsConfig
from musev.errors import ConfigError
from musev.licences import (
    UNKNOWN,
    allows_commercial,
    check_licences,
    licence_of,
    licences_of,
    licences_when_joined,
)
from musev.models.bundle import save_bundle
from musev.models.tiny import make_tiny_bundle
from musev.weight_parts import digest_weights

PAGE = "---\ntags:\n- art\nlicense: {}\n---\n# A model\n"


@pytest.mark.parametrize(
    ("address", "licence"),
    [
        ("checkpoints/vae/sd-vae-ft-mse", "mit"),
        ("checkpoints/IP-Adapter/models/image_encoder", "apache-2.0"),
        ("w/ip-adapter-faceid_sd15.bin", "non-commercial-research"),
        ("w/models/buffalo_l", "non-commercial-research"),
        ("checkpoints/motion/musev_referencenet", "non-commercial-research"),
        ("checkpoints/lcm/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors", "openrail++"),
        ("w/control_v11p_sd15_openpose", "openrail"),
        ("w/stable-diffusion-v1-5", "creativeml-openrail-m"),
        ("checkpoints/t2i/sd1.5/majicmixRealv6Fp16", UNKNOWN),
        ("style.safetensors", UNKNOWN),
    ],
)
def test_published_names(address: str, licence: str) -> None:
    assert licence_of(address) == licence


def test_what_stands_beside_the_files_wins(tmp_path: Path) -> None:
    folder = tmp_path / "buffalo_l"
    folder.mkdir()
    assert licence_of(str(folder)) == "non-commercial-research"
    for number, (name, text, licence) in enumerate(
        [
            ("README.md", PAGE.format("Apache-2.0"), "apache-2.0"),
            ("README.md", PAGE.format("other\nlicense_name: my-terms"), "my-terms"),
            ("README.md", "# No front matter\nlicense: mit\n", UNKNOWN),
            ("LICENSE", "MIT License\n\nCopyright", "mit"),
            ("LICENSE", "Do what we say.", UNKNOWN),
        ]
    ):
        place = tmp_path / f"model-{number}"
        place.mkdir()
        (place / name).write_text(text)
        (place / "style.safetensors").touch()
        assert licence_of(str(place)) == licence
        assert licence_of(f"file://{place}/style.safetensors") == licence


def test_every_part_has_its_licence(tmp_path: Path) -> None:
    config = WeightsConfig(
        t2i="w/stable-diffusion-v1-5",
        motion="w/motion/musev_referencenet",
        referencenet="w/motion/musev_referencenet",
        vae="w/sd-vae-ft-mse",
        controlnets={"openpose": "w/control_v11p_sd15_openpose"},
        embeddings={"bad": "w/bad.pt"},
        face_models="w/models/buffalo_l",
    )
    assert licences_of(config) == {
        "t2i": "creativeml-openrail-m",
        "unet": "non-commercial-research",
        "referencenet": "non-commercial-research",
        "vae": "mit",
        "controlnets/openpose": "openrail",
        "embeddings/bad": UNKNOWN,
        "face_models": "non-commercial-research",
    }
    assert licences_of(WeightsConfig(random_seed=1)) == {"random": "mit"}
    assert set(licences_of(WeightsConfig(bundle="package:mini")).values()) == {"mit"}
    save_bundle(make_tiny_bundle(1), tmp_path / "own")
    own = licences_of(WeightsConfig(bundle=str(tmp_path / "own")))
    assert own["unet"] == UNKNOWN
    assert "index" not in own


def test_a_bundle_tells_the_licences_of_what_it_was_made_of(tmp_path: Path) -> None:
    config = WeightsConfig(
        t2i="w/stable-diffusion-v1-5",
        motion="w/motion/musev_referencenet",
        vae="w/sd-vae-ft-mse",
        controlnets={"openpose": "w/control_v11p_sd15_openpose"},
    )
    joined = licences_when_joined(config)
    assert joined["unet"] == "creativeml-openrail-m and non-commercial-research"
    assert not allows_commercial(joined["unet"])
    assert allows_commercial("mit and apache-2.0")
    bundle = make_tiny_bundle(1)
    save_bundle(bundle, tmp_path / "told", licences=joined)
    save_bundle(bundle, tmp_path / "untold")
    told = WeightsConfig(bundle=str(tmp_path / "told"))
    found = licences_of(told)
    assert (found["vae"], found["text_encoder"]) == ("mit", "creativeml-openrail-m")
    assert found["referencenet"] == UNKNOWN
    # They decide no bytes, so they name no video.
    untold = WeightsConfig(bundle=str(tmp_path / "untold"))
    assert digest_weights(told) == digest_weights(untold)


def test_what_is_required_is_checked() -> None:
    check_licences({"a": UNKNOWN}, None)
    check_licences({"a": "MIT", "b": "creativeml-openrail-m"}, "commercial")
    with pytest.raises(ConfigError, match=r"of: b \(cc-by-nc-4\.0\), c \(unknown\)\. Take other"):
        check_licences({"c": UNKNOWN, "a": "mit", "b": "cc-by-nc-4.0"}, "commercial")
    with pytest.raises(ConfigError, match="must be commercial"):
        check_licences({}, "research")
    assert not allows_commercial("non-commercial-research")
