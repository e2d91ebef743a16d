from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.windows_study import PROFILE_OFFSETS, EstimateMemo, main, seam_profile
from benchmarks.windows_table import SCORES

TWO = ("musev, overlap 4, flat", "rotating, 2 settling")
FEW = ["--frames", "41", "--steps", "3", "--clips", "1", "--seeds", "1", "--profile", "mini"]


def line(variant: str, clip: int, seam_ratio: float) -> dict[str, object]:
    scores = {"seam_ratio": seam_ratio, "pck_0.1": 0.5, "psnr": 20.0 + clip}
    return {"variant": variant, "num_steps": 10, "clip": clip, "seed": 0, "work": 1.5, **scores}


def test_a_window_is_computed_once_a_clip_and_again_where_anything_differs() -> None:
    asked: list[tuple[float, tuple[int, ...]]] = []

    def denoiser(noisy: torch.Tensor, timestep: float, window: tuple[int, ...]) -> torch.Tensor:
        asked.append((timestep, window))
        return noisy + timestep

    memo, noise = EstimateMemo(), torch.randn(1, 4, 2, 3, 3)
    clip = memo.over(denoiser, (0, 0, 10))
    for _ in range(2):
        assert torch.equal(clip(noise.clone(), 5.0, (0, 1)), noise + 5)
    assert len(asked) == 1
    clip(noise, 4.0, (0, 1))
    clip(noise, 5.0, (1, 2))
    clip(noise + 1e-6, 5.0, (0, 1))
    assert len(asked) == 4
    again = memo.over(denoiser, (0, 0, 10))
    again(noise, 5.0, (0, 1))
    assert len(asked) == 4, "another variant of the same clip"
    memo.over(denoiser, (0, 1, 10))(noise, 5.0, (0, 1))
    assert len(asked) == 5, "another seed, so other conditions"


def test_a_profile_shows_where_around_a_join_the_change_is() -> None:
    windows = [tuple(range(start, start + 12)) for start in (0, 8, 16)]
    curve = np.full(27, 2.0)  # change into frames 1 to 27; twice the usual everywhere else
    curve[[7, 15]] = 3.0  # into 8 and 16, the first frames of the overlaps
    curve[[11, 19]] = 4.0  # into 12 and 20, the first after them
    found = dict(zip(PROFILE_OFFSETS, seam_profile(curve, windows), strict=True))
    assert found[0] == pytest.approx(1.5)
    assert found[4] == pytest.approx(2.0)
    rest = [value for offset, value in found.items() if offset not in (0, 4)]
    assert rest == pytest.approx([1.0] * len(rest))


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_broken_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real renders of two variants: rotation does less work for the same clip."""
    rows = tmp_path / "rows.jsonl"
    main(["--rows", str(rows), "--variant", TWO[0], *FEW])
    first = rows.read_text()
    rows.write_text(first + "\n{half a li")  # as a kill would leave it
    main(["--rows", str(rows), "--variant", TWO[0], "--variant", TWO[1], *FEW])
    assert rows.read_text().startswith(first)
    found = [json.loads(text) for text in rows.read_text().splitlines() if text.endswith("}")]
    assert [row["variant"] for row in found] == list(TWO)
    assert found[1]["work"] < found[0]["work"]
    assert all(name in row for row in found for name in SCORES)
    main(["--rows", str(rows), "--part", "1/2", *FEW])  # clip 0 belongs to the other part
    assert rows.read_text().count("seam_ratio") == len(found)
    with pytest.raises(ValueError, match="free; give another file"):
        main(["--rows", str(rows), "--free", *FEW])
    main(["--rows", str(rows), "--table"])
    assert "| 3 | musev, overlap 4, flat |" in capsys.readouterr().out


@pytest.mark.slow
def test_free_clips_have_seams_and_no_truth(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    main(["--rows", str(rows), "--free", "--variant", TWO[1], *FEW])
    (row,) = (json.loads(text) for text in rows.read_text().splitlines() if text)
    assert row["free"]
    assert row["seam_ratio"] > 0.5
    assert np.isnan(row["psnr"])
    assert np.isnan(row["pck_0.1"])


def test_measurements_of_other_weights_are_not_added_to(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**line(TWO[0], 0, 1.0), "weights": "0123456789ab"}) + "\n")
    before = rows.read_text()
    with pytest.raises(
        ValueError, match=r"weights 0123456789ab, this would be .* give another file"
    ):
        main(["--rows", str(rows), *FEW])
    assert rows.read_text() == before


@pytest.mark.parametrize("part", ["2/2", "1", "a/b", "-1/2"])
def test_a_part_that_there_is_not_is_refused(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", str(tmp_path / "rows.jsonl"), f"--part={part}"])
    assert "is not a part like 0/2" in capsys.readouterr().err
