"""The ``musev`` command; jobs are imported when called, so ``--help`` needs no torch and no Ray."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer

from jobs._cli import (
    DEFAULT_PROFILE,
    ROWS_FAILED,
    USAGE,
    ProfileOption,
    SetOption,
    errors_as_status,
    load_settings,
)

_SHOWN = 50

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MuseV on Ray: a manifest of requests in, videos on storage out.",
)


@app.callback()
def main() -> None:
    """MuseV on Ray: a manifest of requests in, videos on storage out."""


_JOBS = {
    "text-to-video": "Render a manifest of prompts and reference images",
    "video-to-video": "Render a manifest of driving videos",
    "text-to-pose": "Give the prompts of a manifest poses to follow",
    "from-musev": "Run a command line of the original MuseV",
    "plan": "Say what a manifest will cost before anything runs",
    "make-dataset": "Make a dataset of drawn or real clips",
    "evaluate": "Judge a run, or a profile on held-out requests",
    "control": "Find control maps in one video or picture, to look at",
    "prepare-weights": "Check a profile's weights, or write them as one folder",
    "train": "Train one stage of the networks",
}
"""Commands that hand their arguments on to the job's own module, and what each does."""


def _add_job(name: str, about: str) -> None:
    module = f"jobs.{name.replace('-', '_')}"

    def run(context: typer.Context) -> None:
        raise typer.Exit(importlib.import_module(module).main(context.args))

    app.command(
        name,
        help=f"{about}, as python -m {module} does.",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(run)


for _name, _about in _JOBS.items():
    _add_job(_name, _about)


@app.command("manifest")
def manifest(
    source: Annotated[str, typer.Argument(help="Manifest to read; path or URL.", metavar="SRC")],
    target: Annotated[
        str | None,
        typer.Argument(help="Where to write it: .parquet, .csv or .jsonl.", metavar="[DST]"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check every row as a run does before it fetches media.")
    ] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    changes: SetOption = None,
) -> None:
    """Convert a manifest, check it, or both; status 3 if some rows are bad, 0 if none is."""
    from pipelines.manifest import read_manifest, resolve_rows

    if target is None and not check:
        typer.echo("error: nothing to do. Name a DST to write, or give --check.", err=True)
        raise typer.Exit(USAGE)
    with errors_as_status():
        settings = load_settings(profile, changes or ())
        raw = read_manifest(source)
        bad = False
        if target is not None:
            bad |= _convert(raw.rows, raw.base_uri, target)
        if check:
            requests, failures = resolve_rows(
                raw.rows, settings.profile, raw.base_uri, find_profile=settings.find_profile
            )
            _show([failure.message for failure in failures])
            typer.echo(
                f"{len(raw.rows)} rows under profile {settings.profile.name}: "
                f"{len(requests)} good, {len(failures)} bad"
            )
            bad |= bool(failures)
    raise typer.Exit(ROWS_FAILED if bad else 0)


def _convert(rows: Sequence[dict[str, object]], base_uri: str, target: str) -> bool:
    from pipelines.manifest import folder_of, rebase_media, split_writable, write_manifest

    writable, problems = split_writable(rows)
    new_base = folder_of(target)
    write_manifest([rebase_media(row, base_uri, new_base) for row in writable], target)
    _show([f"left out: {problem}" for problem in problems])
    typer.echo(f"{len(writable)} of {len(rows)} rows written to {target}")
    return bool(problems)


def _show(messages: Sequence[str]) -> None:
    for message in messages[:_SHOWN]:
        typer.echo(message, err=True)
    if len(messages) > _SHOWN:
        typer.echo(f"... and {len(messages) - _SHOWN} more", err=True)
