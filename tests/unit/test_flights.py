import pytest
import trio
import trio.testing

from idcfs.errors import CatalogueDamaged, DeadlineExceeded, NotFound, Untrusted, first_error
from idcfs.flights import Flights


class Work:
    """Work that waits until it may go on, and counts how often it was started."""

    def __init__(self, result: str | Exception = "done") -> None:
        self.started = 0
        self.may_end = trio.Event()
        self._result = result

    async def __call__(self) -> str:
        self.started += 1
        await self.may_end.wait()
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


async def test_callers_of_one_key_share_one_piece_of_work(nursery: trio.Nursery) -> None:
    flights = Flights[int, str](nursery, 60)
    work, other = Work(), Work("other")
    found: list[str] = []

    async def call(key: int, wanted: Work) -> None:
        found.append(await flights.join(key, wanted))

    async with trio.open_nursery() as callers:
        for _ in range(5):
            callers.start_soon(call, 1, work)
        callers.start_soon(call, 2, other)
        await trio.testing.wait_all_tasks_blocked()
        assert 1 in flights
        assert (work.started, other.started) == (1, 1)
        work.may_end.set()
        other.may_end.set()
    assert sorted(found) == ["done"] * 5 + ["other"]
    assert 1 not in flights
    assert await flights.join(1, work) == "done"
    assert work.started == 2


async def test_a_caller_who_gives_up_does_not_end_the_work(nursery: trio.Nursery) -> None:
    flights = Flights[int, str](nursery, 60)
    work = Work()
    found: list[str] = []

    async def stay() -> None:
        found.append(await flights.join(1, work))

    async with trio.open_nursery() as callers:
        with trio.CancelScope() as impatient:
            callers.start_soon(stay)
            impatient.cancel()
            await flights.join(1, work)
        assert impatient.cancelled_caught
        work.may_end.set()
    assert found == ["done"]
    assert work.started == 1


@pytest.mark.parametrize("error", [NotFound("gone"), CatalogueDamaged("bad"), ZeroDivisionError("a bug")])
async def test_every_caller_is_told_the_error_and_the_next_one_tries_again(
    nursery: trio.Nursery, error: Exception
) -> None:
    flights = Flights[int, str](nursery, 60)
    work = Work(error)
    told: list[Exception] = []

    async def call() -> None:
        try:
            await flights.join(1, work)
        except Exception as error:
            told.append(error)

    async with trio.open_nursery() as callers:
        for _ in range(3):
            callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        work.may_end.set()
    assert [(type(one), str(one)) for one in told] == [(type(error), str(error))] * 3
    assert await flights.join(1, opened()) == "done"


def opened() -> Work:
    work = Work()
    work.may_end.set()
    return work


async def test_the_deadline_holds(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    flights = Flights[int, str](nursery, 30)
    with pytest.raises(DeadlineExceeded, match="30 seconds"):
        await flights.join(1, Work())
    assert trio.current_time() == pytest.approx(30)
    assert 1 not in flights


async def test_the_end_of_the_mount_ends_the_wait() -> None:
    async with trio.open_nursery() as mount:
        flights = Flights[int, str](mount, 60)
        told: list[str] = []

        async def call() -> None:
            with pytest.raises(DeadlineExceeded) as raised, trio.CancelScope(shield=True):
                await flights.join(1, Work())
            told.append(str(raised.value))

        mount.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        mount.cancel_scope.cancel()
    assert told == ["the mount is ending"]


def test_of_a_nurserys_errors_a_bug_is_told_before_one_of_ours() -> None:
    ours, bug = Untrusted("a"), ZeroDivisionError()
    assert first_error(ours) is ours
    assert first_error(ExceptionGroup("", [ours])) is ours
    assert first_error(ExceptionGroup("", [ours, ExceptionGroup("", [NotFound("b"), bug])])) is bug
    assert first_error(ExceptionGroup("", [ExceptionGroup("", [ours]), NotFound("b")])) is ours
