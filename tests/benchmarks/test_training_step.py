from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.training_step import PUBLISHED, count_cost, main


@pytest.fixture(scope="module")
def cost() -> dict[str, float]:
    """One micro batch of the image-prompt stage at 64 px: the smallest that all levels stand."""
    found = count_cost("ip-adapter", latent=8)
    return vars(found) | {"total_gb": found.total_gb}


@pytest.mark.slow
def test_memory_is_the_arithmetic_it_says(cost: dict[str, float]) -> None:
    all_gb, learning_gb = cost["parameters"] / 1e3, cost["learning"] / 1e3
    assert cost["weights_gb"] == pytest.approx(4 * all_gb + 16 * learning_gb)
    assert cost["copies_gb"] == pytest.approx(2 * all_gb)
    assert cost["total_gb"] > cost["weights_gb"] + cost["copies_gb"]
    assert cost["learning"] == pytest.approx(22.3, abs=0.05)


@pytest.mark.slow
def test_checkpointing_keeps_less(cost: dict[str, float]) -> None:
    assert 0 < cost["activations_gb"] < 0.8 * cost["plain_activations_gb"]


@pytest.mark.slow
def test_a_step_costs_more_the_more_it_sees(tmp_path: Path) -> None:
    rows = main(["--stage", "motion", "--latent", "16", "--json", str(tmp_path / "cost.json")])
    (larger,) = main(["--stage", "motion", "--latent", "32"])
    assert 3.8 < larger.tflop / rows[0].tflop < 4.6
    written = json.loads((tmp_path / "cost.json").read_text())
    assert written[0]["tflop"] == rows[0].tflop


def test_the_table_has_the_published_stages_only() -> None:
    assert set(PUBLISHED) == {
        "text-to-image",
        "motion",
        "reference",
        "controlnet",
        "lora",
        "ip-adapter",
    }
