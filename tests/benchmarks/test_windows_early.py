from __future__ import annotations

import re

import pytest

from benchmarks.windows_early import main


@pytest.mark.slow
def test_every_step_is_measured_at_its_own_borders(capsys: pytest.CaptureFixture[str]) -> None:
    """Where windows stand still all steps have the same borders, where they move they do not."""
    names = ("musev, overlap 0, flat", "rotating, 1 settling")
    chosen = [word for name in names for word in ("--variant", name)]
    main(["--frames", "41", "--steps", "3", "--clips", "1", *chosen])
    found = {}
    for line in capsys.readouterr().out.splitlines():
        told = re.fullmatch(r"clip 0, (.+?)  0: (\S+)  1: (\S+)  2: (\S+)", line)
        assert told
        found[told[1]] = told.groups()[1:]
    assert found.keys() == set(names)
    assert len(set(found[names[0]])) == 1
    assert len(set(found[names[1]])) > 1


def test_an_unknown_variant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--variant", "spiral"])
    assert "invalid choice: 'spiral'" in capsys.readouterr().err
