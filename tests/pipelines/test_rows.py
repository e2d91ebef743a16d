from __future__ import annotations

import dataclasses
import json
import math

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musev.config import ClipRequest, GuidanceConfig, SamplingConfig, WindowConfig, to_plain
from musev.errors import ConfigError
from pipelines.rows import (
    MANIFEST_SCHEMA,
    RESULTS_SCHEMA,
    RowFailure,
    canonical_json,
    request_from_json,
    request_to_json,
    results_row,
    results_table,
    stage_row,
)

# DESIGN.md sections 6 and 7, word for word: these names are a contract with readers of the tables.
RESULTS = """request_id sample_id status video_uri sha256 bytes width height num_frames fps
duration_s codec prompt negative_prompt seed profile model_digests steps guidance_scale window
overlap layout scheduler media_digests attempts gpu_seconds stage_seconds error_class error_stage
error_message versions metrics licences""".split()
MANIFEST = """request_id prompt negative_prompt condition_image reference_image ip_adapter_image
face_image face_embedding video video_is_control video_has_condition video_may_be_cut
sample_rate keypoints align
control control_scale num_frames fps width
height img_length_ratio seed steps guidance_scale guidance_scale_end guidance_schedule window
overlap layout blend motion_speed w_ind_noise img_weight strength loras profile extra""".split()

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
UNIT = st.floats(0, 1)


@st.composite
def requests(draw: st.DrawFn) -> ClipRequest:
    window = draw(st.integers(1, 40))
    return ClipRequest(
        request_id=draw(TEXTS),
        prompt=draw(TEXTS),
        condition_image=draw(st.none() | TEXTS),
        num_frames=draw(st.integers(1, 10**6)),
        fps=draw(st.floats(1e-9, 240)),
        width=64,
        height=128,
        seed=draw(st.integers(0, 2**63 - 1)),
        profile=draw(TEXTS),
        sampling=SamplingConfig(
            solver=draw(st.sampled_from(["euler", "lcm"])),
            w_ind_noise=draw(UNIT),
            img_weight=draw(UNIT),
            windows=WindowConfig(num_frames=window, overlap=draw(st.integers(0, window - 1))),
            guidance=GuidanceConfig(
                scale=draw(st.floats(0, 99)), scale_end=draw(st.none() | st.floats(0, 9))
            ),
        ),
        extra=draw(st.none() | TEXTS),
    )


@settings(max_examples=60, deadline=None)
@given(requests())
def test_a_request_survives_json_exactly(request_: ClipRequest) -> None:
    text = request_to_json(request_)
    back = request_from_json(text)
    assert back == request_
    assert request_to_json(back) == text
    assert isinstance(back.sampling.windows, WindowConfig)


def plain_request(**changes: object) -> ClipRequest:
    values = {
        "request_id": "a",
        "prompt": "p",
        "num_frames": 13,
        "fps": 8.0,
        "width": 64,
        "height": 64,
        "seed": 1,
        "profile": "mini",
        "sampling": SamplingConfig(),
    }
    return ClipRequest(**(values | changes))


@pytest.mark.parametrize(
    ("edit", "phrase"),
    [
        (lambda plain: plain.pop("fps"), "incomplete"),
        (lambda plain: plain.update(colour="red"), "'colour'"),
        (lambda plain: plain["sampling"]["windows"].update(overlap=99), "overlap"),
        (lambda plain: plain.update(sampling=[1]), "must be an object"),
    ],
)
def test_request_json_from_elsewhere_is_checked(edit, phrase: str) -> None:
    plain = to_plain(plain_request())
    edit(plain)
    with pytest.raises(ConfigError, match=phrase):
        request_from_json(json.dumps(plain))


def test_damaged_request_json_is_our_error() -> None:
    with pytest.raises(ConfigError, match="damaged"):
        request_from_json("{")


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == canonical_json({"a": "é", "b": 1})
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    assert canonical_json(8.0) != canonical_json(8)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"x"])
def test_canonical_json_refuses_what_has_no_json(value: object) -> None:
    with pytest.raises(ConfigError):
        canonical_json({"x": value})


def test_schemas_are_the_contract() -> None:
    """All columns of the contract in its order; further ones stand beside those they go with."""
    assert [name for name in MANIFEST_SCHEMA.names if name in MANIFEST] == MANIFEST
    assert [name for name in RESULTS_SCHEMA.names if name in RESULTS] == RESULTS
    assert RESULTS_SCHEMA.names[-1] == "extra"


def test_stage_row_is_two_texts() -> None:
    request = plain_request()
    row = stage_row("5ab", request)
    assert set(row) == {"sample_id", "request"}
    assert request_from_json(row["request"]) == request


def test_committed_record_becomes_a_results_row() -> None:
    request = plain_request(extra='{"k":1}', width=64)
    record = {
        "request_id": "a",
        "sample_id": "s",
        "status": "committed",
        "width": 62,
        "attempt_id": "left out",
        "stage_seconds": {"render": 1.5, "commit": 0.25},
        "request": to_plain(request),
    }
    row = results_row(record)
    assert list(row) == RESULTS_SCHEMA.names
    assert row["width"] == 62  # measured, not asked for
    assert row["height"] is None  # not measured: the request's must not stand in for it
    assert (row["steps"], row["scheduler"], row["extra"]) == (10, "euler", '{"k":1}')
    assert results_row(record | {"request": request_to_json(request)}) == row


def test_status_must_be_one_of_three() -> None:
    with pytest.raises(ConfigError, match="status"):
        results_row({"request_id": "a", "status": "done"})


def test_results_table_keeps_types_and_maps(tmp_path) -> None:
    failure = RowFailure(
        request_id="bad", row=2, column="fps", value="-1", error_class="RequestError", message="no"
    )
    done = {"request_id": "a", "status": "committed", "stage_seconds": {"b": 2.0, "a": 1.0}}
    table = results_table([done, failure.to_record()])
    pq.write_table(table, tmp_path / "results.parquet")
    back = pq.read_table(tmp_path / "results.parquet")
    assert back.schema.equals(RESULTS_SCHEMA)
    rows = back.to_pylist()
    assert rows[0]["stage_seconds"] == [("a", 1.0), ("b", 2.0)]
    assert (rows[1]["status"], rows[1]["error_stage"]) == ("failed", "manifest")


def test_failures_of_two_rows_have_two_names() -> None:
    failure = RowFailure(
        request_id="a", row=2, column="fps", value="-1", error_class="RequestError", message="no"
    )
    assert failure.sample_id != dataclasses.replace(failure, row=3).sample_id
    assert failure.sample_id == dataclasses.replace(failure).sample_id
