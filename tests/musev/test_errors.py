"""Errors cross process borders whole, and one base catches them all."""

from __future__ import annotations

import inspect
import pickle

import pytest

from musev import errors

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BaseException) and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", ALL)
def test_survives_pickling_with_its_message(kind: type[Exception]) -> None:
    message = "clip 'a': width is 7; ask for an even width"
    copy = pickle.loads(pickle.dumps(kind(message)))
    assert type(copy) is kind
    assert str(copy) == message


@pytest.mark.parametrize("kind", ALL)
def test_one_base_catches_all_and_bugs_are_not_caught_with_them(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.MusevError)
    assert not issubclass(kind, (ValueError, OSError, RuntimeError, KeyError))


def test_the_list_is_not_empty() -> None:
    assert len(ALL) >= 7
