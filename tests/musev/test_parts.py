"""Shared parts: one computation a key, bounded memory, keys by content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musev.parts import NoStore, OwnParts, RecentParts, kind_of, part_key


def test_a_part_is_made_once_and_counted() -> None:
    store, calls = RecentParts(), []

    def make() -> torch.Tensor:
        calls.append(1)
        return torch.ones(3)

    first = store.find("text-a", make)
    before = store.counts.copy()
    assert store.find("text-a", make) is first
    store.find("text-b", make)
    store.find("reference-b", make)
    assert len(calls) == 3
    assert (store.counts.made, store.counts.found) == ({"text": 2, "reference": 1}, {"text": 1})
    assert store.counts.since(before) == {
        "reference": {"computed": 1, "reused": 0},
        "text": {"computed": 1, "reused": 1},
    }


def test_the_parts_used_longest_ago_go_first() -> None:
    store, made = RecentParts(limit_bytes=16), []

    def find(key: str, size: int = 2) -> None:
        store.find(key, lambda: made.append(key) or torch.zeros(size))

    for key in ("a", "b", "a", "c", "a", "b"):
        find(key)
    assert made == ["a", "b", "c", "b"], "b was pushed out by c, a was not"
    find("huge", 100)
    find("huge", 100)
    assert made[-1] == "huge"
    assert made.count("huge") == 1, "one part is kept whatever its size"


def test_what_is_not_here_is_asked_for_beyond() -> None:
    beyond = RecentParts()
    beyond.find("text-a", lambda: torch.full((1,), 7.0))
    here = RecentParts(beyond)
    assert float(here.find("text-a", lambda: torch.zeros(1))) == 7.0
    assert beyond.counts.found == {"text": 1}
    assert (here.counts.made, here.counts.found) == ({}, {"text": 1}), "computed by somebody else"
    assert float(NoStore().find("text-a", lambda: torch.zeros(1))) == 0.0


def test_a_part_that_cannot_be_computed_counts_as_nothing() -> None:
    store = RecentParts()
    with pytest.raises(ZeroDivisionError):
        store.find("text-a", lambda: torch.zeros(1 // 0))
    assert not store.counts.made
    assert not store.counts.found


def test_what_is_a_clips_own_is_computed_and_not_kept() -> None:
    store = RecentParts()
    own = OwnParts(store, {"reference"})
    for _ in range(2):
        own.find("reference-a", lambda: torch.zeros(1))
        own.find("text-a", lambda: torch.zeros(1))
    assert store.counts.made == {"reference": 2, "text": 1}
    assert store.counts.found == {"text": 1}


def test_keys_follow_content() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    key = part_key("x", picture, torch.ones(2), "text", None)
    assert key == part_key("x", picture.copy(), torch.ones(2), "text", None)
    others = [
        part_key("y", picture, torch.ones(2), "text", None),
        part_key("x", picture + 1, torch.ones(2), "text", None),
        part_key("x", picture.reshape(4, 1, 3), torch.ones(2), "text", None),
        part_key("x", picture, torch.zeros(2), "text", None),
        part_key("x", picture, torch.ones(2), "text", False),
    ]
    assert len({key, *others}) == 6
    assert kind_of(part_key("image prompt", picture)) == "image prompt"
