"""How a row is marked failed, and what stays on record of it."""

from __future__ import annotations

from musev.errors import MediaError
from pipelines.outcomes import fail_row, failure_record, unsampled_id
from pipelines.rows import results_row
from tests.pipelines.stand_ins import request


def test_an_expected_error_is_told_as_it_is() -> None:
    row = fail_row({"row": 1}, stage="load_inputs", error=MediaError("no file. Check the name."))
    assert row["error_message"] == "no file. Check the name."
    assert row["error_traceback"] == ""
    assert (row["row"], row["status"]) == (1, "failed")


def test_an_unexpected_error_keeps_its_traceback_and_says_how_to_try_again() -> None:
    try:
        raise KeyError("surprise")
    except KeyError as error:
        row = fail_row({}, stage="render", error=error)
    assert "--retry-failed" in row["error_message"]
    assert "test_outcomes.py" in row["error_traceback"]
    record = failure_record(row, request("one"))
    assert record["request_id"] == "one"
    assert results_row(record)["error_class"] == "KeyError"


def test_the_name_of_a_row_without_readable_media_is_stable_and_its_own() -> None:
    first = request("one", condition_image="/a.png")
    assert unsampled_id(first) == unsampled_id(request("one", condition_image="/a.png"))
    assert unsampled_id(first) != unsampled_id(request("one", condition_image="/b.png"))
