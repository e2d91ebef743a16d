"""Give the prompts of a manifest poses to follow: what a person does, made before the pictures.

    python -m jobs.text_to_pose --manifest prompts.parquet --output out/poses
    python -m jobs.text_to_video --manifest out/poses/manifest.parquet --output out/videos

A small network makes the joints of a moving body from the words; the new manifest names them in
``keypoints``, and the videos follow them through the pose ControlNet. Rows that bring a video,
keypoints, a control or a condition image of their own stay as they are, and so do those whose
prompt names no action that the network has learnt.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from jobs._cli import (
    DEFAULT_PROFILE,
    OK,
    ROWS_FAILED,
    WORKERS,
    ManifestOption,
    ProfileOption,
    SetOption,
    Settings,
    errors_as_status,
    load_settings,
    run_app,
)
from jobs._console import INTERRUPTED, Teller, disconnect, terminate_as_interrupt
from musev.errors import ManifestError
from musev.text_to_pose_config import GUIDANCE, NUM_STEPS, read_text_to_pose_config
from musev.weight_parts import digest_text_to_pose, text_to_pose_folder
from pipelines.manifest import (
    RawManifest,
    folder_of,
    read_manifest,
    resolve_rows,
    split_writable,
    write_manifest,
)
from pipelines.resources import connect, measure_cluster, parse_workers, plan_shard_workers
from pipelines.storage import Store
from pipelines.text_to_pose import PosePlan, PoseSettings, make_poses, plan_poses, posed_rows

MANIFEST = "manifest.parquet"
SHIPPED = "package:drawn-poses"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def text_to_pose(
    manifest: ManifestOption,
    output: Annotated[
        str, typer.Option("--output", help="Folder or URL for poses and the new manifest.")
    ],
    profile: ProfileOption = DEFAULT_PROFILE,
    changes: SetOption = None,
    weights: Annotated[
        str,
        typer.Option("--weights", help="The network: a folder or URL, or package:NAME."),
    ] = SHIPPED,
    num_steps: Annotated[
        int, typer.Option("--steps", min=1, max=1000, help="Steps of its diffusion.")
    ] = NUM_STEPS,
    guidance: Annotated[
        float, typer.Option("--guidance", min=0.0, help="How much more than the prompt says.")
    ] = GUIDANCE,
    workers: Annotated[
        str | None, typer.Option("--workers", metavar=WORKERS, help="Default: one a CPU.")
    ] = None,
) -> None:
    """Give the prompts of a manifest poses to follow."""
    with errors_as_status():
        folder = text_to_pose_folder(weights)
        settings = PoseSettings(
            weights=weights,
            telling=_telling(folder),
            digest=digest_text_to_pose(folder),
            num_steps=num_steps,
            guidance=guidance,
        )
        status = _run(manifest, output, profile, tuple(changes or ()), settings, workers)
    raise typer.Exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 done, 3 some rows are bad or got no poses for an error, 2 wrong command, 130
        interrupted, 1 otherwise.
    """
    return run_app(app, argv, prog_name="python -m jobs.text_to_pose")


def _run(
    manifest: str,
    output: str,
    profile_name: str,
    changes: tuple[str, ...],
    settings: PoseSettings,
    workers: str | None,
) -> int:
    started, teller = time.monotonic(), Teller(sys.stderr)
    chosen = load_settings(profile_name, changes)
    raw = read_manifest(manifest)
    writable, unwritable = split_writable(raw.rows)
    requests, failures = resolve_rows(
        writable, chosen.profile, raw.base_uri, find_profile=chosen.find_profile
    )
    for problem in unwritable:
        teller.say(f"left out of the new manifest: {problem}")
    for failure in failures:
        teller.say(failure.message)
    plan = plan_poses(writable, requests, settings)
    store = Store(output)
    target = store.uri_of(MANIFEST)
    rows = posed_rows(
        writable, plan, {}, store=store, old_base=raw.base_uri, new_base=folder_of(target)
    )
    _check_followed(rows, plan, chosen, raw)
    try:
        with terminate_as_interrupt():
            failed = _make(store, plan, settings, workers, teller)
    except KeyboardInterrupt:
        teller.say("interrupted; poses that are there stay, run the same command again to go on")
        return INTERRUPTED
    finally:
        disconnect()
    for reason, count in Counter(failed.values()).items():
        teller.say(f"{count} files of poses could not be made: {reason}")
    if failed:
        rows = posed_rows(
            writable, plan, failed, store=store, old_base=raw.base_uri, new_base=folder_of(target)
        )
    write_manifest(rows, target)
    posed = sum(task.path not in failed for task in plan.tasks.values())
    typer.echo(
        f"poses          {posed} of {len(raw.rows)} rows, {time.monotonic() - started:.0f} s"
    )
    for reason, count in Counter(plan.left.values()).most_common():
        typer.echo(f"as they were   {count}, because the row {reason}")
    typer.echo(f"manifest       {target}")
    told = ["musev", "text-to-video", "--manifest", target, "--profile", profile_name]
    told += [word for change in changes for word in ("--set", change)]
    typer.echo(f"next           {shlex.join(told)} --output OUT")
    return ROWS_FAILED if failed or failures or unwritable else OK


def _telling(folder: Path) -> frozenset[str]:
    """Words that tell what is done; all that are known where none are marked."""
    config = read_text_to_pose_config(folder)
    return frozenset(config.telling or config.words)


def _check_followed(
    rows: list[dict[str, object]], plan: PosePlan, chosen: Settings, raw: RawManifest
) -> None:
    """Refuse a run whose poses nothing would follow, before any is made."""
    posed = [row for row in rows if row.get("request_id") in plan.tasks]
    _, refused = resolve_rows(posed, chosen.profile, raw.base_uri, find_profile=chosen.find_profile)
    if refused:
        raise ManifestError(
            f"{len(refused)} rows could not follow poses, the first: {refused[0].message}"
        )


def _make(
    store: Store, plan: PosePlan, settings: PoseSettings, workers: str | None, teller: Teller
) -> dict[str, str]:
    if not plan.tasks:
        return {}
    asked = parse_workers(workers)
    connect()
    shape = measure_cluster()
    most = min(plan_shard_workers(shape, asked, networks=False).most, len(plan.tasks))

    def on_row(done: int, total: int) -> None:
        if teller.wants_progress(last=done == total):
            teller.progress(f"{done} of {total} files of poses", last=done == total)

    return make_poses(store, plan, settings, shape=shape, num_workers=most, on_row=on_row)


if __name__ == "__main__":
    sys.exit(main())
