"""The pool: the workers of a run, leased task by task to whoever has work for them.

    broker = start_broker(PoolPlan(...), make_worker)         # an actor; it owns the workers
    lease = ray.get(broker.lease.remote(Wish(order=(3, 0))))  # waits until a worker is free
    answer = ray.get(lease.worker.denoise.remote(...))        # straight to the worker
    broker.hand_back.remote(lease)

Who has work asks; the broker knows who is free, and gives workers to the oldest video first. Data
never passes through it. Workers are actors of their own, not a stage of a dataset: so windows of
many videos share them, they come and go while a video runs, and one that dies costs the tasks in
its hands. They never restart by themselves: the broker makes a new one for every one that is lost,
and that waits until some machine has room.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.resources import on_this_machine

logger = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often the broker looks whether workers are missing or idle."""
IDLE_S = 30.0
"""A worker above the least number is given up after so long without work."""
RETRY_S = 1.0
"""Pause before a worker that died is replaced; one that dies while loading must not spin."""
FORGOTTEN_S = 30.0
"""A lease held for so long is looked after: its holder may be gone."""
CLAIM_S = 60.0
"""Who computes a shared part is trusted for so long; then another one computes it."""
SHARED_BYTES = 2 * 2**30
"""Bound on the shared parts kept in the object store."""
REMEMBERED = 10_000
"""So many owners that withdrew, and workers that were lost, are remembered."""


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """How many workers there are, and what each holds."""

    least: int
    most: int
    resources: dict[str, float] = field(default_factory=dict)
    """Ray's ``num_cpus`` and ``num_gpus`` of one worker."""
    idle_s: float = IDLE_S


class Lease(NamedTuple):
    """The right to give one task to one worker."""

    worker: Any
    """Handle of the worker's actor."""
    name: int
    life: int
    """A worker that was replaced has the same name and another life."""
    number: int
    """Of the lease; no two are alike."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody wants a worker for."""

    order: tuple[int, int]
    """Number of the video, then urgency within it; the lowest is served first."""
    owner: str = ""
    """By which wishes are withdrawn together."""
    queues: bool = False
    """Whether the task is short enough to wait in a worker's hands behind another such task."""


class _Held(NamedTuple):
    """A lease that has not been handed back."""

    queues: bool
    """Whether its task lets another one wait behind it."""
    since: float


@dataclass
class _Worker:
    """One place in the pool."""

    name: int
    handle: Any = None
    life: int = 0
    up: bool = False
    held: dict[int, _Held] = field(default_factory=dict)
    """By number of the lease."""
    since: float = 0.0
    """When it was last given something or became free."""
    asked: bool = False
    """Whether it is being asked if its leases are still in use."""


@dataclass(frozen=True, kw_only=True)
class PoolView:
    """The pool at one moment."""

    num_up: int
    num_wanted: int
    num_wishes: int
    num_lost: int
    num_held: int
    """Leases that have not been handed back."""
    leases: int


class Broker:
    """Knows who is free. An asynchronous actor: all its methods run in one loop.

    Args:
        plan: Of the pool.
        make_worker: Makes the actor of a worker, given the broker's own handle; its method
            ``hello`` answers when it has loaded what it needs.
    """

    def __init__(self, plan: PoolPlan, make_worker: Callable[[Any], Any]) -> None:
        self._plan = plan
        self._make_worker = make_worker
        self._workers: dict[int, _Worker] = {}
        self._names = itertools.count()
        self._ticket = itertools.count()
        self._wishes: list[tuple[tuple[int, int], int, Wish, asyncio.Future[Lease | None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts = _SharedParts(SHARED_BYTES)
        self._num_leases = self._num_lost = 0
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._in_work: OrderedDict[tuple[int, int], int | None] = OrderedDict()
        """Lost workers, by name and life, to the lease whose task they were at."""

    async def start(self) -> None:
        """Begin to bring the least number of workers up; returns at once."""
        for _ in range(self._plan.least):
            self._add_worker()
        self._spawn(self._look_after())

    async def lease(self, wish: Wish) -> Lease | None:
        """Wait for a worker.

        Args:
            wish: What for.

        Returns:
            The lease; None if the wish was withdrawn, or its owner has withdrawn before: the calls
            of one caller may overtake each other on their way into the loop.
        """
        if wish.owner in self._gone:
            return None
        future: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._wishes, (wish.order, next(self._ticket), wish, future))
        self._match()
        return await future

    async def hand_back(self, lease: Lease) -> None:
        """Say that a lease's task has been answered."""
        worker = self._of(lease)
        if worker is not None and worker.held.pop(lease.number, None) is not None:
            worker.since = time.monotonic()
            self._match()

    async def hand_back_after(self, lease: Lease, tasks: list[Any], limit_s: float) -> None:
        """Take a lease back when its task ends, for somebody who no longer cares how.

        Args:
            lease: The lease.
            tasks: The references that its task answers with.
            limit_s: After so long its worker is ended: it hangs.
        """
        self._spawn(self._wait_for(lease, tasks, limit_s))

    async def lost(self, lease: Lease) -> bool:
        """Say that a worker died; its place is filled again. Safe to say twice.

        Args:
            lease: Of any of the tasks that were lost with it.

        Returns:
            Whether the worker was at this task; not if the task waited behind another one.
        """
        worker = self._of(lease)
        if worker is not None:
            self._replace(worker)
        return self._in_work.get((lease.name, lease.life)) == lease.number

    async def end(self, lease: Lease) -> None:
        """End a worker that does not answer; its place is filled again."""
        worker = self._of(lease)
        if worker is not None:
            _kill(worker.handle)
            self._replace(worker)

    async def withdraw(self, owner: str) -> None:
        """Answer all wishes of an owner with None, those still on their way too."""
        _remember(self._gone, owner, None)
        for _, _, wish, future in self._wishes:
            if wish.owner == owner and not future.done():
                future.set_result(None)
        self._wishes = [item for item in self._wishes if not item[3].done()]
        heapq.heapify(self._wishes)

    async def claim_part(self, key: str) -> list[Any] | None:
        """Ask for a part of conditions that others may have computed.

        Args:
            key: Its key.

        Returns:
            A reference to it, in a list; or None: the caller has to compute and publish it. Who
            asks while another one computes waits.
        """
        return await self._parts.claim(key)

    async def publish_part(self, key: str, part: Any) -> None:
        """Keep a part that the caller was told to compute."""
        import ray

        self._parts.publish(key, ray.put(part), len(part))

    async def give_up_part(self, key: str) -> None:
        """Let somebody else compute a part that the caller could not."""
        self._parts.give_up(key)

    async def view(self) -> PoolView:
        """Sum up."""
        return PoolView(
            num_up=sum(worker.up for worker in self._workers.values()),
            num_wanted=len(self._workers),
            num_wishes=len(self._wishes),
            num_lost=self._num_lost,
            num_held=sum(len(worker.held) for worker in self._workers.values()),
            leases=self._num_leases,
        )

    def _of(self, lease: Lease) -> _Worker | None:
        worker = self._workers.get(lease.name)
        return worker if worker is not None and worker.life == lease.life else None

    def _match(self) -> None:
        """Serve wishes in their order while somebody can take them."""
        while self._wishes:
            _, _, wish, future = self._wishes[0]
            worker = None if future.done() else self._choose(wish)
            if worker is None and not future.done():
                return
            heapq.heappop(self._wishes)
            if worker is None:
                continue  # withdrawn
            self._num_leases += 1
            worker.since = time.monotonic()
            worker.held[self._num_leases] = _Held(wish.queues, worker.since)
            future.set_result(Lease(worker.handle, worker.name, worker.life, self._num_leases))

    def _choose(self, wish: Wish) -> _Worker | None:
        up = [worker for worker in self._workers.values() if worker.up]
        free = [worker for worker in up if not worker.held]
        if not free and wish.queues and len(self._wishes) > len(up):
            # A second task ahead of time, but only while the queue is longer than the pool: near
            # the end it would wait behind a slow worker while others idle (DESIGN.md 3).
            free = [
                worker for worker in up if [one.queues for one in worker.held.values()] == [True]
            ]
        return min(free, key=lambda worker: worker.since, default=None)

    def _add_worker(self) -> None:
        worker = _Worker(next(self._names), since=time.monotonic())
        self._workers[worker.name] = worker
        self._spawn(self._bring_up(worker, worker.life))

    def _replace(self, worker: _Worker) -> None:
        self._num_lost += worker.up
        # Tasks are worked off in the order of their leases.
        _remember(self._in_work, (worker.name, worker.life), min(worker.held, default=None))
        worker.up, worker.handle = False, None
        worker.life += 1
        worker.held.clear()
        worker.asked = False
        self._spawn(self._bring_up(worker, worker.life))

    async def _bring_up(self, worker: _Worker, life: int) -> None:
        """Make a worker's actor and wait for it to load; again and again if it dies doing so."""
        import ray

        me = ray.get_runtime_context().current_actor
        while self._workers.get(worker.name) is worker and worker.life == life:
            worker.handle = self._make_worker(me)
            try:
                await worker.handle.hello.remote()
            except ray.exceptions.RayError as error:
                logger.warning("worker %d did not start: %s", worker.name, error)
                await asyncio.sleep(RETRY_S)
                continue
            worker.up, worker.since = True, time.monotonic()
            self._match()
            return

    async def _look_after(self) -> None:
        """Ask for more workers while some work waits, and give those up that idle."""
        while True:
            await asyncio.sleep(LOOK_S)
            starting = sum(not worker.up for worker in self._workers.values())
            missing = min(self._plan.most - len(self._workers), len(self._wishes) - starting)
            for _ in range(max(0, missing)):
                self._add_worker()
            now = time.monotonic()
            for worker in list(self._workers.values()):
                idle = not worker.held and now - worker.since > self._plan.idle_s
                if idle and not self._wishes and len(self._workers) > self._plan.least:
                    del self._workers[worker.name]
                    _kill(worker.handle)
                old = [n for n, one in worker.held.items() if now - one.since > FORGOTTEN_S]
                if old and not worker.asked:
                    worker.asked = True
                    self._spawn(self._find_forgotten(worker, worker.life, set(old)))

    async def _find_forgotten(self, worker: _Worker, life: int, held: set[int]) -> None:
        """Free leases whose holder died: a worker that answers a greeting has their tasks done."""
        import ray

        try:
            await worker.handle.hello.remote()  # waits behind the tasks it has
            await asyncio.sleep(FORGOTTEN_S / 3)  # for what is on its way
        except ray.exceptions.RayError:
            if worker.life == life:
                self._replace(worker)
        worker.asked = False
        forgotten = held & set(worker.held) if worker.life == life else set()
        for number in forgotten:
            logger.warning("worker %d: lease %d was never handed back", worker.name, number)
            del worker.held[number]
        if forgotten:
            self._match()

    async def _wait_for(self, lease: Lease, tasks: list[Any], limit_s: float) -> None:
        import ray

        try:
            await asyncio.wait_for(asyncio.gather(*tasks), limit_s)
        except asyncio.TimeoutError:
            logger.warning("worker %d does not come to an end: it is replaced", lease.name)
            await self.end(lease)
        except ray.exceptions.RayTaskError as error:  # whatever it was, nobody waits for it
            logger.info("an abandoned task ended with %r", error)
        except ray.exceptions.RayError:  # died, or was ended because memory ran out
            await self.lost(lease)
        except Exception as error:  # noqa: BLE001 - as above
            logger.info("an abandoned task ended with %r", error)
        await self.hand_back(lease)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)


class _SharedParts:
    """References to parts by key; who asks first computes, who asks meanwhile waits."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._making: dict[str, asyncio.Event] = {}
        self._num_bytes = 0

    async def claim(self, key: str) -> list[Any] | None:
        while key not in self._kept and key in self._making:
            making = self._making[key]
            try:
                await asyncio.wait_for(making.wait(), CLAIM_S)
            except (
                asyncio.TimeoutError
            ):  # lost, most likely; not the built-in one before Python 3.11
                if self._making.get(key) is making:
                    del self._making[key]
        if key in self._kept:
            self._kept.move_to_end(key)
            return [self._kept[key][0]]
        self._making[key] = asyncio.Event()
        return None

    def publish(self, key: str, reference: Any, num_bytes: int) -> None:
        if key not in self._kept:
            self._kept[key] = (reference, num_bytes)
            self._num_bytes += num_bytes
        while self._num_bytes > self._limit_bytes and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._num_bytes -= freed
        self.give_up(key)

    def give_up(self, key: str) -> None:
        if (making := self._making.pop(key, None)) is not None:
            making.set()


def _remember(known: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    known[key] = value
    if len(known) > REMEMBERED:
        known.popitem(last=False)


def start_broker(plan: PoolPlan, make_worker: Callable[[Any], Any]) -> Any:
    """Start the broker, and with it the pool; both end when the caller's process does.

    Args:
        plan: Of the pool.
        make_worker: As of :class:`Broker`; pickled.

    Returns:
        The broker's actor handle.
    """
    import ray

    options = {"max_concurrency": 10_000, **on_this_machine()}
    broker = ray.remote(Broker).options(**options).remote(plan, make_worker)
    ray.get(broker.start.remote())
    return broker


def end_broker(broker: Any) -> None:
    """End the broker and with it all workers, which it owns."""
    _kill(broker)


def _kill(handle: Any) -> None:
    import ray

    if handle is not None:
        ray.kill(handle)
