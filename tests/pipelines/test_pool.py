"""The broker on a real Ray, with workers that do next to nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import pool
from pipelines.pool import Lease, PoolPlan, PoolView, Wish, start_broker
from tests.real_ray import local_ray

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray():
        yield


class Helper:
    """A worker that sleeps, or dies, on request."""

    def __init__(self, stumble: str = "") -> None:
        marker = Path(stumble)
        if stumble and not marker.exists():
            marker.touch()
            raise ValueError("not this time")

    def hello(self) -> None: ...

    def nap(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def die(self) -> None:
        os._exit(3)


def make_helper(broker: Any, stumble: str = "") -> Any:
    import ray

    return ray.remote(Helper).options(num_cpus=0.01).remote(stumble)


def start(least: int, most: int | None = None, **settings: Any) -> Any:
    plan = PoolPlan(least=least, most=most or least, **settings)
    return start_broker(plan, make_helper)


def view(broker: Any) -> PoolView:
    import ray

    return ray.get(broker.view.remote())


def wait_for(broker: Any, what: Callable[[PoolView], bool]) -> PoolView:
    deadline = time.monotonic() + 90
    while not what(found := view(broker)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def lease(broker: Any, order: int = 0, **wish: Any) -> Lease:
    import ray

    return ray.get(broker.lease.remote(Wish(order=(order, 0), **wish)))


def test_the_oldest_video_is_served_first() -> None:
    import ray

    broker = start(1)
    first = lease(broker)
    wishes = {order: broker.lease.remote(Wish(order=(order, 0))) for order in (5, 3, 4)}
    wait_for(broker, lambda found: found.num_wishes == 3)
    served = []
    for _ in range(3):
        ray.get(broker.hand_back.remote(first))
        ready, _ = ray.wait(list(wishes.values()), timeout=10)
        first = ray.get(ready[0])
        order = next(order for order, wish in wishes.items() if wish == ready[0])
        served.append(order)
        del wishes[order]
    assert served == [3, 4, 5]


def test_a_second_task_waits_with_a_worker_only_while_the_queue_is_longer_than_the_pool() -> None:
    import ray

    broker = start(2)
    wait_for(broker, lambda found: found.num_up == 2)
    wishes = [broker.lease.remote(Wish(order=(0, 0), queues=True)) for _ in range(7)]
    wait_for(broker, lambda found: (found.leases, found.num_wishes) == (4, 3))
    time.sleep(0.2)
    assert view(broker).leases == 4, "two in work, two behind them"
    done, _ = ray.wait(wishes, num_returns=4)
    names = [ray.get(item).name for item in done]
    assert sorted(names.count(name) for name in set(names)) == [2, 2]
    for item in done:
        ray.get(broker.hand_back.remote(ray.get(item)))
    # The first one back makes room for a second task again; then the queue is too short for that.
    wait_for(broker, lambda found: (found.leases, found.num_wishes) == (6, 1))
    whole = broker.lease.remote(Wish(order=(0, 0)))
    later = broker.lease.remote(Wish(order=(1, 0)))
    assert not ray.wait([whole, later], timeout=0.3)[0], "a long task waits for a free worker"


def test_the_workers_end_with_their_broker() -> None:
    import ray
    from ray.exceptions import RayActorError

    broker = start(1)
    held = lease(broker)
    pool.end_broker(broker)
    with pytest.raises(RayActorError):
        ray.get([held.worker.nap.remote(0.1) for _ in range(300)])


def test_a_lost_worker_is_replaced_once_however_often_it_is_said() -> None:
    import ray
    from ray.exceptions import RayActorError

    broker = start(1)
    held = lease(broker)
    with pytest.raises(RayActorError):
        ray.get(held.worker.die.remote())
    for _ in range(3):
        ray.get(broker.lost.remote(held))
    ray.get(broker.hand_back.remote(held))  # of a former life: means nothing
    again = lease(broker)
    assert ray.get(again.worker.nap.remote(0))
    found = view(broker)
    assert (found.num_lost, found.num_wanted, found.leases) == (1, 1, 2)
    ray.get(broker.end.remote(again))
    assert lease(broker).life > again.life


def test_a_worker_that_cannot_start_is_made_again(folder: Path) -> None:
    from functools import partial

    make = partial(make_helper, stumble=str(folder / "stumbled"))
    broker = start_broker(PoolPlan(least=1, most=1), make)
    assert lease(broker).worker is not None
    assert (folder / "stumbled").exists()


def test_more_workers_come_while_work_waits_and_go_when_it_does_not() -> None:
    import ray

    broker = start(1, 3, idle_s=1.0)
    held = [lease(broker, order) for order in range(3)]
    assert len({item.name for item in held}) == 3
    extra = broker.lease.remote(Wish(order=(9, 0)))
    time.sleep(1.0)
    assert view(broker).num_wanted == 3, "never more than the most"
    for item in held:
        ray.get(broker.hand_back.remote(item))
    ray.get(broker.hand_back.remote(ray.get(extra)))
    wait_for(broker, lambda found: found.num_wanted == 1)


def test_wishes_are_withdrawn_together() -> None:
    import ray

    broker = start(1)
    held = lease(broker)
    mine = [broker.lease.remote(Wish(order=(0, n), owner="mine")) for n in range(3)]
    yours = broker.lease.remote(Wish(order=(1, 0), owner="yours"))
    wait_for(broker, lambda found: found.num_wishes == 4)  # calls may overtake each other
    ray.get(broker.withdraw.remote("mine"))
    assert ray.get(mine) == [None] * 3
    ray.get(broker.hand_back.remote(held))
    assert ray.get(yours).name == held.name


def test_a_wish_that_comes_after_its_owner_withdrew_is_not_granted() -> None:
    import ray

    broker = start(1)
    wait_for(broker, lambda found: found.num_up == 1)
    ray.get(broker.withdraw.remote("gone"))
    assert ray.get(broker.lease.remote(Wish(order=(0, 0), owner="gone"))) is None
    assert lease(broker, owner="here").number == 1, "the worker is still free"


@pytest.mark.parametrize("told_first", [0, 1])
def test_a_task_that_waited_behind_another_is_not_to_blame(told_first: int) -> None:
    import ray

    broker = start(1)
    wait_for(broker, lambda found: found.num_up == 1)
    wishes = [broker.lease.remote(Wish(order=(n, 0), queues=True)) for n in range(4)]
    held = ray.get(ray.wait(wishes, num_returns=2)[0])
    held.sort(key=lambda lease: lease.number)
    assert held[0][:3] == held[1][:3], "one worker has both"
    held[0].worker.die.remote()
    blamed = {
        number: ray.get(broker.lost.remote(held[number])) for number in (told_first, 1 - told_first)
    }
    assert blamed == {0: True, 1: False}


def test_an_abandoned_task_gives_its_worker_back_when_it_ends() -> None:
    broker = start(1)
    held = lease(broker)
    broker.hand_back_after.remote(held, [held.worker.nap.remote(0.3)], 60.0)
    assert lease(broker).number == held.number + 1


class HastyBroker(pool.Broker):
    """Looks after leases at once."""

    async def start(self) -> None:
        pool.FORGOTTEN_S = 1.0
        await super().start()


def start_hasty() -> Any:
    import ray

    options = {"num_cpus": 0, "max_concurrency": 100}
    plan = PoolPlan(least=1, most=1)
    broker = ray.remote(HastyBroker).options(**options).remote(plan, make_helper)
    ray.get(broker.start.remote())
    return broker


def test_an_abandoned_task_that_does_not_end_costs_its_worker() -> None:
    broker = start(1)
    held = lease(broker)
    broker.hand_back_after.remote(held, [held.worker.nap.remote(3600.0)], 0.3)
    again = lease(broker)
    assert again.life > held.life
    assert view(broker).num_lost == 1


class LocalBroker(pool.Broker):
    """A broker in this process, whose workers are up at once and do nothing."""

    async def _bring_up(self, worker: Any, life: int) -> None:
        worker.handle, worker.up = object(), True
        self._match()


def _memory_ran_out() -> Exception:
    from ray.exceptions import OutOfMemoryError

    return OutOfMemoryError("the memory monitor has ended the worker")


def _task_failed() -> Exception:
    from ray.exceptions import RayTaskError

    return RayTaskError("decode", "the traceback", OSError("no room"), ip="127.0.0.1")


@pytest.mark.parametrize(
    ("make_error", "is_lost"), [(_memory_ran_out, True), (_task_failed, False)]
)
def test_an_abandoned_task_tells_a_dead_worker_from_one_that_answers_with_an_error(
    make_error: Callable[[], Exception], is_lost: bool
) -> None:
    async def answer() -> None:
        raise make_error()

    async def lives() -> tuple[int, int]:
        broker = LocalBroker(PoolPlan(least=1, most=1), lambda _: None)
        await broker.start()
        wish = Wish(order=(0, 0))
        held = await broker.lease(wish)
        assert held is not None
        await broker.hand_back_after(held, [answer()], 60.0)
        again = await asyncio.wait_for(broker.lease(wish), 20)
        assert again is not None
        return held.life, again.life

    first, then = asyncio.run(lives())
    assert (then > first) == is_lost


def test_a_forgotten_lease_is_found() -> None:
    import ray

    broker = start_hasty()
    held = lease(broker)
    busy = held.worker.nap.remote(4.0)
    waiting = broker.lease.remote(Wish(order=(0, 0)))
    assert not ray.wait([waiting], timeout=2.0)[0], "its task still runs"
    ray.get(busy)
    assert ray.get(waiting).number == held.number + 1


def test_a_lease_forgotten_on_a_busy_worker_is_found_too() -> None:
    import ray

    broker = start_hasty()
    lease(broker, queues=True)  # and its holder is gone
    wishes = [broker.lease.remote(Wish(order=(0, 0), queues=True))]
    for number in range(1, 60):  # one waits, one is done beside the forgotten lease, and so on
        wishes.append(broker.lease.remote(Wish(order=(0, number), queues=True)))
        ready, wishes = ray.wait(wishes, num_returns=1)
        done = ray.get(ready[0])
        ray.get(done.worker.nap.remote(0.2))
        ray.get(broker.hand_back.remote(done))
        if view(broker).num_wishes == 0:
            return  # the one that waited has its turn: the place of the forgotten one is free
    pytest.fail("the lease was not found")


def test_a_shared_part_is_computed_by_who_asks_first() -> None:
    import ray

    broker = start(1)
    assert ray.get(broker.claim_part.remote("reference-1")) is None
    waiting = [broker.claim_part.remote("reference-1") for _ in range(3)]
    assert not ray.wait(waiting, timeout=0.3)[0]
    ray.get(broker.publish_part.remote("reference-1", np.arange(5, dtype=np.uint8)))
    for found in ray.get(waiting):
        assert ray.get(found[0]).tolist() == [0, 1, 2, 3, 4]
    assert ray.get(broker.claim_part.remote("reference-2")) is None
    other = broker.claim_part.remote("reference-2")
    ray.get(broker.give_up_part.remote("reference-2"))
    assert ray.get(other) is None, "then another one has to"
