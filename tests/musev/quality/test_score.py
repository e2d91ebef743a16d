"""A score is a number or a reason."""

from musev.quality.score import Score, unknown


def test_a_number_is_known_and_a_reason_is_not() -> None:
    assert Score(0.0).known
    assert not unknown("too dark").known
    assert unknown("too dark").reason == "too dark"
