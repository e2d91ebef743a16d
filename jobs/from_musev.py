"""Run a command line of the original MuseV: translated to manifests and settings, then rendered.

    python -m jobs.from_musev --output s3://bucket/run -- \\
        python scripts/inference/text2video.py --sd_model_name majicmixRealv6Fp16 \\
        -test_data_path ./configs/tasks/example.yaml --target_datas yongen --time_size 12 --fps 12

Each base model is a run of its own, into a folder of its name below the output, so that every
worker loads it once. The manifest and the command that a run amounts to are told, and can be used
by themselves. docs/from-musev.md says what became of every flag.
"""

from __future__ import annotations

import json
import posixpath
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import fsspec
import pyarrow.parquet as pq
import typer

from jobs import text_to_video
from jobs._cli import (
    OK,
    ROWS_FAILED,
    TROUBLE,
    USAGE,
    DryRunOption,
    LicenceOption,
    ProfileOption,
    RetryOption,
    SetOption,
    WorkersOption,
    errors_as_status,
    load_settings,
    run_app,
    split_change,
)
from jobs._console import INTERRUPTED
from musev.errors import ManifestError, MediaError
from musev.media.exports import EXPORT_KINDS, ExportKind
from pipelines.from_musev import MusevRun, Translation, original_name, translate
from pipelines.ledger import RESULTS
from pipelines.manifest import resolve_rows, split_writable, write_manifest
from pipelines.musev_flags import OriginalCommand, read_command
from pipelines.original_weights import find_path
from pipelines.rows import canonical_json

if TYPE_CHECKING:
    from musev.media import VideoInfo

MANIFEST = "manifest.parquet"
EXPORTS = "exports"
_SOURCES = ("weights.bundle", "weights.random_seed", "weights.t2i", "weights.motion")
_WORST_FIRST = (INTERRUPTED, TROUBLE, USAGE, ROWS_FAILED, OK)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    help=__doc__, context_settings={"allow_extra_args": True, "ignore_unknown_options": False}
)
def from_musev(
    original: Annotated[
        list[str],
        typer.Argument(help="The original's command line, behind --.", metavar="-- COMMAND"),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", help="Folder or URL; default: the command's --output_dir."),
    ] = None,
    project: Annotated[
        str,
        typer.Option("--project", help="The original's folder: its relative paths start there."),
    ] = ".",
    profile: ProfileOption = "upstream",
    changes: SetOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    retry_failed: RetryOption = False,
    require_licence: LicenceOption = None,
) -> None:
    """Run a command line of the original MuseV."""
    more = [*(["--workers", workers] if workers else []), *(["--dry-run"] if dry_run else [])]
    more += ["--retry-failed"] if retry_failed else []
    more += ["--require-licence", require_licence] if require_licence else []
    with errors_as_status(), ExitStack() as stack:
        command = read_command(original)
        translation = translate(
            command,
            load_settings(profile, changes or ()).profile,
            project=project,
            video_facts=measure_video,
        )
        _tell(translation)
        place = output or find_path(project, command["output_dir"].replace("$PROJECT/", ""))
        kept = place  # a dry run leaves nothing behind
        if dry_run:
            kept = stack.enter_context(tempfile.TemporaryDirectory(prefix="mv", dir="/tmp"))
        statuses = [OK]
        for run in translation.runs:
            argv, complete = prepare(
                command, run, output=place, folder=kept, profile=profile, changes=changes or ()
            )
            told = shlex.join(["musev", "text-to-video", *argv]).replace(kept, place)
            typer.echo(f"== {run.model}\n{told}")
            statuses += [OK if complete else ROWS_FAILED, text_to_video.main([*argv, *more])]
            if statuses[-1] == INTERRUPTED:
                break
            if not dry_run and statuses[-1] in (OK, ROWS_FAILED):
                tell_exports(command, f"{place}/{run.model}")
    raise typer.Exit(next(status for status in _WORST_FIRST if status in statuses))


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: that of the worst of its runs.
    """
    return run_app(app, argv, prog_name="python -m jobs.from_musev")


def prepare(
    command: OriginalCommand,
    run: MusevRun,
    *,
    output: str,
    folder: str,
    profile: str,
    changes: Sequence[str],
) -> tuple[list[str], bool]:
    """Write a run's manifest.

    Args:
        command: The original's command line.
        run: What one base model is to render.
        output: Folder or URL of all runs.
        folder: Where the manifest is written, in a folder of the model's name.
        profile: Name of the profile.
        changes: The caller's own ``--set``; they come last. A source of weights among them takes
            the place of all the command's.

    Returns:
        The command line of ``text-to-video``, and whether every row could be written.

    Raises:
        ManifestError: If the run has no rows. A setting that does not fit is a ConfigError.
    """
    own = dict(split_change(change, "fps=8") for change in changes)
    kept = {
        key: value
        for key, value in run.settings.items()
        if key not in own and not (set(own) & set(_SOURCES) and key.startswith("weights."))
    }
    merged = [f"{key}={value}" for key, value in {**kept, **own}.items()]
    settings = load_settings(profile, merged)
    writable, problems = split_writable(run.rows)
    for problem in problems:
        typer.echo(f"left out: {problem}", err=True)
    if not writable:
        raise ManifestError(f"model {run.model}: no task can be rendered; see the reasons above.")
    requests, _ = resolve_rows(
        writable, settings.profile, "file:///", find_profile=settings.find_profile
    )
    names = {each.request_id: original_name(command, run.model, each) for each in requests}
    rows = []
    for row in writable:
        extra = json.loads(row.get("extra") or "{}")
        if name := names.get(row["request_id"]):
            extra["musev_name"] = name
        rows.append({**row, "extra": canonical_json(extra)})
    manifest = f"{folder}/{run.model}/{MANIFEST}"
    write_manifest(rows, manifest)
    argv = ["--manifest", manifest, "--output", f"{output}/{run.model}", "--profile", profile]
    return [*argv, *(word for change in merged for word in ("--set", change))], not problems


def tell_exports(command: OriginalCommand, folder: str) -> None:
    """Write a run's videos in the other forms that the command asks for, and say where.

    Args:
        command: Its ``--save_filetype`` and ``--save_images``.
        folder: Folder or URL of the run.
    """
    asked = {command["save_filetype"], *(["images"] if command["save_images"] else [])}
    kinds = [kind for kind in EXPORT_KINDS if kind in asked]
    if not kinds:
        return
    table, path = fsspec.core.url_to_fs(f"{folder}/{RESULTS}")
    rows = pq.read_table(path, filesystem=table).to_pylist()
    count = 0
    for row in rows:
        name = json.loads(row["extra"] or "{}").get("musev_name")
        if row["status"] == "committed" and name:
            count += 1
            stem = posixpath.splitext(name)[0]
            for kind in kinds:
                _export(row, f"{folder}/{EXPORTS}/{stem}", kind)
    typer.echo(f"exports        {count} videos as {', '.join(kinds)} in {folder}/{EXPORTS}")


def _export(row: dict[str, Any], target: str, kind: ExportKind) -> None:
    from musev.media.exports import export_video

    ending = "" if kind == "images" else f".{kind}"
    with tempfile.TemporaryDirectory(prefix="mv", dir="/tmp") as scratch:
        video, made = Path(scratch) / "video.mp4", Path(scratch) / f"made{ending}"
        source, path = fsspec.core.url_to_fs(row["video_uri"])
        source.get_file(path, str(video))
        export_video(video, made, kind, fps=row["fps"])
        store, place = fsspec.core.url_to_fs(target + ending)
        for file in sorted(made.iterdir()) if made.is_dir() else [made]:
            goal = f"{place}/{file.name}" if made.is_dir() else place
            store.makedirs(store._parent(goal), exist_ok=True)
            store.put_file(str(file), goal)


def measure_video(uri: str) -> VideoInfo | None:
    """Measure a driving video.

    Args:
        uri: Absolute fsspec URI.

    Returns:
        What it holds; None if it cannot be read, which its row then tells.
    """
    from musev.media import scan_video

    try:
        with tempfile.TemporaryDirectory(prefix="mv", dir="/tmp") as folder:
            file = Path(uri.removeprefix("file://"))
            if "://" in uri and not uri.startswith("file://"):
                file = Path(folder) / "video"
                fs, path = fsspec.core.url_to_fs(uri)
                fs.get_file(path, str(file))
            return scan_video(file)
    except (MediaError, OSError, ValueError, ImportError):
        return None


def _tell(translation: Translation) -> None:
    for note in translation.notes:
        typer.echo(f"note: {note}")
    for run in translation.runs:
        for skipped in run.skipped:
            typer.echo(f"note: {run.model} leaves out {skipped}")


if __name__ == "__main__":
    sys.exit(main())
