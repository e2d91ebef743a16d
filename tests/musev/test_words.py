from __future__ import annotations

from musev.words import words_of


def test_words_are_lower_case_and_without_signs() -> None:
    assert words_of("A person, WAVING (2 hands)!") == ["a", "person", "waving", "2", "hands"]
    assert words_of(" ,. ") == []


def test_words_of_other_scripts_stay_whole() -> None:
    assert words_of("Größe 一个人 у моря") == ["größe", "一个人", "у", "моря"]
