"""Render a manifest of driving videos: their motion, and what the rows say, to videos on storage.

    python -m jobs.video_to_video --manifest requests.parquet --output s3://bucket/run

Every row names a ``video``, or ``keypoints`` in its place. Without more, the people in it are found
and followed; ``control`` says what else is to be found, ``video_is_control`` that the frames are
control maps already, ``start_from_video`` with ``strength`` that the video is changed instead of
made anew. Rows of both jobs may stand in one manifest of ``text-to-video``, which is the same job
and less strict. Run the same command again after any interruption.
"""

from __future__ import annotations

import sys

import typer

from jobs._cli import (
    DEFAULT_PROFILE,
    DryRunOption,
    LicenceOption,
    ManifestOption,
    OutputOption,
    ProfileOption,
    RetryOption,
    SetOption,
    WorkersOption,
    errors_as_status,
    run_app,
)
from jobs.text_to_video import prepare, run
from musev.config import ClipRequest
from musev.errors import RequestError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def video_to_video(
    manifest: ManifestOption,
    output: OutputOption,
    profile: ProfileOption = DEFAULT_PROFILE,
    changes: SetOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    retry_failed: RetryOption = False,
    require_licence: LicenceOption = None,
) -> None:
    """Render a manifest of driving videos."""
    with errors_as_status():
        job = prepare(
            manifest,
            output,
            profile,
            changes or (),
            retry_failed=retry_failed,
            require=require_driving,
        )
        status = run(job, workers, dry_run=dry_run, require_licence=require_licence)
    raise typer.Exit(status)


def require_driving(request: ClipRequest) -> RequestError | None:
    """Say what is wrong with a row that nothing drives; None if something does."""
    if request.video is not None or request.keypoints is not None:
        return None
    return RequestError(
        "is missing: video-to-video follows a video, or keypoints. Give one, or render the row "
        "with text-to-video."
    )


def main(argv: list[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Command line without the program's name; None for the process's own.

    Returns:
        Exit status, as that of :func:`jobs.text_to_video.main`.
    """
    return run_app(app, argv, prog_name="python -m jobs.video_to_video")


if __name__ == "__main__":
    sys.exit(main())
