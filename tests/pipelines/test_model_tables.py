from __future__ import annotations

import json
from typing import Any

import pytest

from musev.errors import ConfigError
from pipelines.model_tables import BUILT_IN, choose_names
from tests.goldens import GOLDENS, have_goldens, require_goldens

FILE = GOLDENS / "pipeline" / "functions" / "configs.json"
TABLES = json.loads(FILE.read_text()) if have_goldens() else {"missing": {}}
CALLED = {"T2I_all_model": "t2i", "motion_model": "motion", "lcm_model": "lcm"}
TOLD_ONLY = ("desp", "base_model", "refer")


def without_descriptions(table: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in entry.items() if key not in TOLD_ONLY}
        for name, entry in table.items()
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", TABLES)
def test_a_built_in_table_equals_the_originals(name: str) -> None:
    require_goldens()
    relative = json.loads(json.dumps(TABLES[name]).replace("$PROJECT/", ""))
    assert BUILT_IN[CALLED.get(name, name)] == without_descriptions(relative)


def choose(asked: str) -> list[str]:
    names = ["majicmixRealv6Fp16", "fantasticmix_v10"]
    return choose_names(asked, names, flag="--sd_model_name", where="t.py")


def test_names_are_chosen_in_the_tables_order() -> None:
    assert choose("all") == ["majicmixRealv6Fp16", "fantasticmix_v10"]
    assert choose("fantasticmix_v10, majicmixRealv6Fp16") == choose("all")
    assert choose("fantasticmix_v10,fantasticmix_v10") == ["fantasticmix_v10"]


@pytest.mark.parametrize(
    ("asked", "phrase"),
    [
        ("majicmixrealv6fp16", "Did you mean 'majicmixRealv6Fp16'"),
        ("fantasticmix,majicmixRealv6Fp16", "no 'fantasticmix' in t.py. Did you mean 'fantastic"),
        ("zebra", "There are: majicmixRealv6Fp16, fantasticmix_v10"),
        (" , ", "names nothing"),
    ],
)
def test_an_unknown_name_is_told_its_neighbours(asked: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        choose(asked)
