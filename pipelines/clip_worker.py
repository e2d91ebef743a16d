"""One worker of the pool: an engine for life, and what rows and conductors ask of it."""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from musev.config import PICTURE_COLUMNS, Profile
from musev.parts import PartUses, RecentParts, kind_of
from pipelines.clip_media import open_media
from pipelines.engines import LoadEngine
from pipelines.ledger import Ledger
from pipelines.media_cache import MediaCache
from pipelines.outcomes import Row
from pipelines.progress import Pulse
from pipelines.rounds import RemoteSigns
from pipelines.rows import request_from_json
from pipelines.scratch import scratch_folder
from pipelines.stages.commit import CommitClip
from pipelines.stages.render import RenderClip

OPEN_CLIPS = 4
"""Clips whose conditions a worker keeps; windows of more would take turns on one worker."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What a worker needs to know; picklable."""

    profile: Profile
    device: str
    ledger: Ledger
    cache: MediaCache
    model_digests: Mapping[str, str]
    load_engine: LoadEngine
    licences: Mapping[str, str] = field(default_factory=dict)
    shares_parts: bool = False
    """Whether several rows name the same media, so that it pays to ask other workers."""

    def commit(self) -> CommitClip:
        """Make what commits rows."""
        return CommitClip(
            ledger=self.ledger, model_digests=self.model_digests, licences=self.licences
        )


class ClipWorker:
    """Holds one engine; a Ray actor that does one thing after another.

    Answers of the conductor's kinds of task come with the seconds they took.

    Args:
        setup: What to load, and where things are.
        board: Actor that is told how the worker is.
        broker: The pool's, for shared parts; None without.

    Raises:
        Exception: Whatever keeps the engine from loading; the board is told.
    """

    def __init__(self, setup: WorkerSetup, board: Any, broker: Any = None) -> None:
        self._pulse = Pulse(RemoteSigns(board))
        shares = setup.shares_parts and broker is not None
        self._parts = RecentParts(SharedParts(broker, setup.device) if shares else None)
        try:
            self._engine = setup.load_engine(setup.profile, setup.device, self._parts)
        except Exception as error:
            board.failed_to_load.remote(f"{type(error).__name__}: {error}")
            raise
        self._render = RenderClip(
            engine=self._engine,
            device=setup.device,
            ledger=setup.ledger,
            cache=setup.cache,
            pulse=self._pulse,
        )
        self._commit = setup.commit()
        self._ledger, self._cache = setup.ledger, setup.cache
        self._folder = scratch_folder()
        self._open: OrderedDict[str, tuple[Callable[..., Any], ExitStack]] = OrderedDict()
        self._pulse.ready()

    def hello(self) -> None:
        """Answer as soon as everything before has been done."""

    def clip(self, row: Row) -> Row:
        """Bring a whole row to its end."""
        before = self._parts.counts.copy()
        with self._pulse.working():
            row = self._render(row)
            return self._commit({**row, "conditions": self._parts.counts.since(before)})

    def condition(self, row: Row) -> tuple[Any, Any, float, PartUses]:
        """Compute the conditions of a long clip.

        Args:
            row: Ready.

        Returns:
            The conditions, packed; what drives the windows has to know; seconds; parts of
            conditions that were computed or were there already.
        """
        from pipelines.wire import pack_value

        started, before = time.monotonic(), self._parts.counts.copy()
        with self._pulse.working():
            request = request_from_json(row["request"])
            with open_media(
                self._cache, request, row["media_digests"], row.get("control_maps", "")
            ) as media:
                conditions, facts = self._engine.condition(request, media)
        uses = self._parts.counts.since(before)
        return pack_value(conditions), facts, time.monotonic() - started, uses

    def denoise(
        self, name: str, clip: list[Any], noisy: Any, timestep: float, frames: tuple[int, ...]
    ) -> tuple[Any, float]:
        """Estimate one window of a clip.

        Args:
            name: Of the clip and its attempt.
            clip: References to its row and its conditions, fetched the first time.
            noisy: Packed ``noisy_BCFHW``.
            timestep: Of the step.
            frames: Number of each frame.

        Returns:
            Packed ``estimate_BCFHW``, and seconds.
        """
        from pipelines.wire import pack, unpack

        started = time.monotonic()
        with self._pulse.working():
            estimate_BCFHW = self._opened(name, clip)(unpack(noisy), timestep, frames)
        return pack(estimate_BCFHW), time.monotonic() - started

    def decode(self, fps: float, latents: Any, path: str) -> tuple[int, float]:
        """Make a segment of clean latents and put it to storage.

        Args:
            fps: Of the video.
            latents: Packed ``latents_BCTHW``.
            path: Of the segment below the output URL.

        Returns:
            Number of frames, and seconds.
        """
        from pipelines.wire import unpack

        started = time.monotonic()
        target = self._folder / "segment.mp4"
        with self._pulse.working():
            try:
                count = self._engine.write_segment(unpack(latents), fps=fps, target=target)
                self._ledger.store.put(path, target)
            finally:
                target.unlink(missing_ok=True)
        return count, time.monotonic() - started

    def _opened(self, name: str, clip: list[Any]) -> Callable[..., Any]:
        import ray

        from pipelines.wire import unpack_value

        if name not in self._open:
            row, packed = ray.get(clip)
            while len(self._open) >= OPEN_CLIPS:
                self._open.popitem(last=False)[1][1].close()
            request = request_from_json(row["request"])
            with ExitStack() as stack:
                media = stack.enter_context(self._video_of(request, row))
                maps = media.get("maps", media.get("video"))
                loras = {"loras": media["loras"]} if "loras" in media else {}
                denoise = stack.enter_context(
                    self._engine.open_clip(request, unpack_value(packed), maps, **loras)
                )
                self._open[name] = (denoise, stack.pop_all())
        self._open.move_to_end(name)
        return self._open[name][0]

    def _video_of(self, request: Any, row: Row) -> Any:
        """Media without pictures, which are in the conditions."""
        video_only = dataclasses.replace(request, **dict.fromkeys(PICTURE_COLUMNS))
        return open_media(
            self._cache, video_only, row["media_digests"], row.get("control_maps", "")
        )


class SharedParts:
    """Parts of conditions that workers share through the broker; see :mod:`musev.parts`.

    Texts are not asked for: computing one costs no more than asking.

    Args:
        broker: The pool's.
        device: Where parts are wanted.
    """

    def __init__(self, broker: Any, device: str) -> None:
        self._broker = broker
        self._device = device

    def find(self, key: str, make: Callable[[], Any], *, shared: bool = True) -> Any:
        """Return the part from the object store, or compute it and put it there."""
        import ray

        from musev.models.trees import map_tensors
        from pipelines.wire import pack_value, unpack_value

        if not shared or kind_of(key) == "text":
            return make()
        found = ray.get(self._broker.claim_part.remote(key))
        if found is not None:
            part = unpack_value(ray.get(found[0]))
            return map_tensors(lambda tensor: tensor.to(self._device), part)
        try:
            part = make()
        except BaseException:
            self._broker.give_up_part.remote(key)
            raise
        packed = pack_value(map_tensors(lambda tensor: tensor.cpu(), part))
        self._broker.publish_part.remote(key, packed)
        return part
