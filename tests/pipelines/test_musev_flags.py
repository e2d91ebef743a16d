from __future__ import annotations

import json
from typing import Any

import pytest

from musev.errors import ConfigError
from musev.registry import get_profile
from pipelines.musev_flags import FLAGS, HOMES, flag_table, ignored_flags, read_command
from pipelines.rows import MANIFEST_COLUMNS
from tests.goldens import GOLDENS, ROOT, have_goldens, require_goldens

FILE = GOLDENS / "pipeline" / "functions" / "cli.json"
CLI = json.loads(FILE.read_text()) if have_goldens() else {}
RECORDED = [
    pytest.param(script, flag, id=f"{script}-{flag['dest']}")
    for script, flags in CLI.items()
    for flag in flags
] or [pytest.param("missing", {}, id="missing")]
KINDS = {"store_true": "on", "store_false": "off"}
TYPES = {"str": "text", "int": "integer", "float": "number"}


@pytest.mark.parity
@pytest.mark.parametrize(("script", "recorded"), RECORDED)
def test_a_flag_is_known_with_kind_default_and_choices(script: str, recorded: Any) -> None:
    require_goldens()
    flag = FLAGS[recorded["flags"][0]]
    assert flag.dest == recorded["dest"]
    assert flag.kind == KINDS.get(recorded["action"]) or TYPES[recorded["type"]]
    assert flag.default == recorded["default"]
    assert set(recorded["choices"] or ()) <= set(flag.choices) or not recorded["choices"]
    assert flag.only in (None, script)


@pytest.mark.parity
def test_no_flag_is_missing_and_none_is_made_up() -> None:
    require_goldens()
    names = {script: {flag["flags"][0] for flag in flags} for script, flags in CLI.items()}
    assert names["video2video"] == set(FLAGS)
    assert names["text2video"] == {name for name, flag in FLAGS.items() if flag.only is None}
    assert len(FLAGS) == 92


def test_the_page_holds_the_table() -> None:
    page = (ROOT / "docs" / "from-musev.md").read_text()
    assert "\n".join(flag_table()) in page


@pytest.mark.parametrize("name", FLAGS)
def test_a_home_is_a_column_or_a_setting_that_exists(name: str) -> None:
    flag = FLAGS[name]
    profile = get_profile("upstream")
    for place in flag.where:
        if place in MANIFEST_COLUMNS:
            continue
        value: Any = profile
        for part in place.split("."):
            value = getattr(value, part)
    has_value = flag.home in ("column", "setting", "weights")
    assert bool(flag.where) == has_value
    assert flag.home in HOMES


README = (
    "python scripts/inference/text2video.py --sd_model_name majicmixRealv6Fp16 "
    "-test_data_path ./configs/tasks/example.yaml --target_datas yongen --fps 12"
)


def test_a_command_line_is_read_as_a_shell_hands_it_over_or_as_one_text() -> None:
    one = read_command([README])
    assert one == read_command(README.split())
    assert one == read_command([README.replace(" --fps", " \\\n   --fps")])
    assert one == read_command(["CUDA_VISIBLE_DEVICES=1 " + README])
    assert one.script == "text2video"
    assert one["test_data_path"] == "./configs/tasks/example.yaml"
    assert (one["fps"], one["time_size"]) == (12, 12)
    assert one.given == {"sd_model_name", "test_data_path", "target_datas", "fps"}


def test_a_flag_that_turns_off_turns_off() -> None:
    command = read_command([f"{README} --use_condition_image --redraw_condition_image"])
    assert command["use_condition_image"] is False
    assert command["redraw_condition_image"] is True
    assert read_command([README])["use_condition_image"] is True


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("python app.py", "must name text2video.py or video2video.py"),
        ("text2video.py", "-test_data_path"),
        (f"{README} --fsp 3", "no flag '--fsp'. Did you mean --fps"),
        (f"{README} --fps many", "--fps"),
        (f"{README} --controlnet_name pose", "has no flag '--controlnet_name'"),
        (f"{README} --noise_type pink", "invalid choice: 'pink'"),
        (f"{README} --save_filetype avi", "invalid choice: 'avi'"),
        (f"{README} --facein_model_name x", "never released"),
        (f"{README} --write_info", "the results table holds"),
        (f"{README} 'open", "cannot be read"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_reason(line: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase.replace("(", r"\(")):
        read_command([line])


def test_what_does_nothing_is_told() -> None:
    command = read_command([f"{README} --overwrite --n_cols 2 --save_filetype mp4"])
    told = ignored_flags(command)
    assert [line.split()[0] for line in told] == ["--overwrite", "--n_cols"]
