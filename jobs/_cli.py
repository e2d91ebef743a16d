"""Flags that every job shares, how they become a profile, and how errors become a status."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from musev.config import Profile, WeightsConfig
from musev.errors import ConfigError, ManifestError, MusevError
from musev.registry import PROFILES, get_profile
from musev.settings import PUBLISHED_PARTS, replace_setting

OK, TROUBLE, USAGE, ROWS_FAILED = 0, 1, 2, 3
"""Exit statuses: everything done; the run broke; wrong command or manifest; some rows failed."""

DEFAULT_PROFILE = "mini"
WORKERS = "N|MIN:MAX"
"""What ``--workers`` takes, for the help."""

ManifestOption = Annotated[
    str,
    typer.Option(
        "--manifest",
        help="Requests: .parquet (file or folder), .csv, .jsonl or MuseV task .yaml; path or URL.",
    ),
]
OutputOption = Annotated[
    str, typer.Option("--output", help="Folder or URL for videos, records and the results table.")
]
ProfileOption = Annotated[
    str, typer.Option("--profile", help=f"Named settings: {', '.join(PROFILES)}.")
]
WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar=WORKERS,
        help="Render workers; default: one a GPU, or one on the CPU. With MIN:MAX more come while "
        "work waits for them, also on machines that join later.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, without starting Ray.")
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try rows again that failed in an earlier run.")
]
LicenceOption = Annotated[
    str | None,
    typer.Option(
        "--require-licence",
        metavar="commercial",
        help="Refuse weights whose licence is not known to allow commercial use.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, e.g. sampling.num_steps=20; repeatable.",
    ),
]

# A bundle, a seed and the published folders exclude each other: naming one drops the others.
_WEIGHT_SOURCES = (("bundle",), ("random_seed",), ("t2i", "motion"))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The run's profile, and the same ``--set`` changes for any other profile a row names."""

    profile: Profile
    changes: tuple[tuple[str, str], ...] = ()

    def find_profile(self, name: str) -> Profile:
        """Look up a profile by name with this run's changes applied."""
        return (
            self.profile if name == self.profile.name else _changed(get_profile(name), self.changes)
        )


def load_settings(profile: str, changes: Sequence[str] = ()) -> Settings:
    """Make the run's settings from ``--profile`` and every ``--set``.

    Args:
        profile: Name of a profile.
        changes: ``KEY=VALUE`` texts; their order does not matter, the last of equal keys holds.

    Returns:
        The settings.

    Raises:
        ConfigError: If there is no such profile or setting, or a value does not fit.
    """
    pairs = dict(split_change(change, "sampling.num_steps=20") for change in changes)
    if "name" in pairs:
        raise ConfigError("a profile's name cannot be changed with --set; choose with --profile")
    settings = tuple(pairs.items())
    return Settings(profile=_changed(get_profile(profile), settings), changes=settings)


def split_change(change: str, example: str) -> tuple[str, str]:
    """Split the text of one ``--set``.

    Args:
        change: ``KEY=VALUE``.
        example: A good one, for the error.

    Returns:
        Key and value.

    Raises:
        ConfigError: If there is no key or no ``=``.
    """
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set needs KEY=VALUE, got {change!r}; e.g. {example}")
    return key.strip(), value


def run_app(app: typer.Typer, argv: list[str] | None, *, prog_name: str) -> int:
    """Run a job's command line.

    Args:
        app: The job's.
        argv: Command line without the program's name; None for the process's own.
        prog_name: How the usage line calls it.

    Returns:
        Exit status.
    """
    try:
        app(args=argv, prog_name=prog_name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else TROUBLE
    return OK


def _changed(profile: Profile, changes: Sequence[tuple[str, str]]) -> Profile:
    # Settings may only fit together (window 3 with overlap 1), so what is refused now is tried
    # again once the others are in.
    profile, waiting = _with_weight_source(profile, dict(changes))
    while waiting:
        refused: dict[str, str] = {}
        problem: ConfigError | None = None
        for key, value in waiting.items():
            try:
                profile = replace_setting(profile, key, value)
            except ConfigError as error:
                refused[key], problem = value, problem or error
        if problem is not None and len(refused) == len(waiting):
            raise problem
        waiting = refused
    return profile


def _with_weight_source(
    profile: Profile, changes: dict[str, str]
) -> tuple[Profile, dict[str, str]]:
    named = {name for family in _WEIGHT_SOURCES for name in family if f"weights.{name}" in changes}
    if not named:
        return profile, changes
    source = {
        name: getattr(profile.weights, name) if named & set(family) else None
        for family in _WEIGHT_SOURCES
        for name in family
    }
    if not named & {"t2i", "motion"}:  # its other parts go with it, unless they are set as well
        source |= dict.fromkeys(PUBLISHED_PARTS)
    for name in named:
        value = changes[f"weights.{name}"]
        if value.lower() in ("none", "null"):
            source[name] = None
        elif name != "random_seed":
            source[name] = value
        elif not value.lstrip("-").isdigit():
            raise ConfigError(f"weights.random_seed must be int, got {value!r}")
        else:
            source[name] = int(value)
    weights: WeightsConfig = dataclasses.replace(profile.weights, **source)
    rest = {key: value for key, value in changes.items() if key[len("weights.") :] not in named}
    return dataclasses.replace(profile, weights=weights), rest


@contextlib.contextmanager
def errors_as_status() -> Iterator[None]:
    """End the command with one line on stderr and a status where an expected error leaves it."""
    try:
        yield
    except (ConfigError, ManifestError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except MusevError as error:
        typer.echo(f"error: {type(error).__name__}: {error}", err=True)
        raise typer.Exit(TROUBLE) from None
