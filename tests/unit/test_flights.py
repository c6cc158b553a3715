import pytest
import trio
import trio.testing

from idcfs.errors import CatalogueDamaged, DeadlineExceeded, NotFound, Untrusted, first_error
from idcfs.reading.flights import Flights


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


async def test_work_that_was_begun_and_does_not_come_in_time_is_done_by_the_next_who_wants_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    flights = Flights[int, str](nursery, 30)
    work, begun = Work("again"), 0.0
    flights.begin(1)
    with pytest.raises(DeadlineExceeded, match="30 seconds"):
        await flights.join(1, work)
    assert 30 <= trio.current_time() - begun < 32
    assert work.started == 0
    assert 1 not in flights, "nobody waits for it any more"
    found: list[str] = []

    async def call() -> None:
        found.append(await flights.join(1, work))

    async with trio.open_nursery() as callers:
        callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert 1 in flights
        # What comes late is not what is waited for now.
        flights.land(1, "late")
        flights.fail(1, Untrusted("late"))
        flights.carry_on(1, Work("late"))
        await trio.testing.wait_all_tasks_blocked()
        assert not found
        work.may_end.set()
    assert found == ["again"]
    assert 1 not in flights
    flights.land(1, "later still")
    flights.fail(1, Untrusted("later still"))
    flights.carry_on(1, Work("later still"))
    assert 1 not in flights


async def test_work_is_done_in_the_callers_task_unless_it_is_under_way(nursery: trio.Nursery) -> None:
    flights = Flights[int, str](nursery, 60)
    work, other = Work(), Work("other")
    found: list[str] = []

    async def call() -> None:
        found.append(await flights.join(1, other))

    async with trio.open_nursery() as callers:
        callers.start_soon(flights.fly, 1, work)
        await trio.testing.wait_all_tasks_blocked()
        assert not flights.is_awaited(1)
        callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert flights.is_awaited(1)
        await flights.fly(1, other)
        work.may_end.set()
    assert found == ["done"]
    assert (work.started, other.started) == (1, 0)
    assert not flights.is_awaited(1)


async def test_what_fails_in_the_callers_task_is_for_those_who_join(nursery: trio.Nursery) -> None:
    flights = Flights[int, str](nursery, 60)
    work = Work(NotFound("gone"))
    async with trio.open_nursery() as callers:
        callers.start_soon(flights.fly, 1, work)
        await trio.testing.wait_all_tasks_blocked()
        callers.start_soon(expect, flights, NotFound)
        await trio.testing.wait_all_tasks_blocked()
        work.may_end.set()
    assert 1 not in flights


async def expect(flights: Flights[int, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        await flights.join(1, Work())


async def test_work_that_was_begun_lands_for_all_who_joined(nursery: trio.Nursery) -> None:
    flights = Flights[int, str](nursery, 60)
    work = Work()
    found: list[str] = []

    async def call() -> None:
        found.append(await flights.join(1, work))

    flights.begin(1)
    assert 1 in flights
    assert not flights.is_awaited(1)
    async with trio.open_nursery() as callers:
        for _ in range(3):
            callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert flights.is_awaited(1)
        flights.land(1, "landed")
    assert found == ["landed"] * 3
    assert work.started == 0
    assert 1 not in flights


@pytest.mark.parametrize("error", [NotFound("gone"), ZeroDivisionError("a bug"), ExceptionGroup("", [NotFound("x")])])
async def test_work_that_was_begun_fails_for_all_who_joined(nursery: trio.Nursery, error: Exception) -> None:
    flights = Flights[int, str](nursery, 60)
    flights.begin(1)
    async with trio.open_nursery() as callers:
        for _ in range(3):
            callers.start_soon(expect, flights, type(first_error(error)))
        await trio.testing.wait_all_tasks_blocked()
        flights.fail(1, error)
    assert await flights.join(1, opened()) == "done"


async def test_work_that_was_begun_is_carried_on_for_those_who_joined(nursery: trio.Nursery) -> None:
    flights = Flights[int, str](nursery, 60)
    work = Work("carried on")
    found: list[str] = []

    async def call() -> None:
        found.append(await flights.join(1, Work()))

    flights.begin(1)
    async with trio.open_nursery() as callers:
        callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        flights.carry_on(1, work)
        callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert flights.is_awaited(1)
        work.may_end.set()
    assert found == ["carried on"] * 2
    assert work.started == 1
    assert 1 not in flights


async def test_work_that_is_to_be_carried_on_after_the_mount_has_ended_is_given_up() -> None:
    async with trio.open_nursery() as mount:
        flights = Flights[int, str](mount, 60)
    flights.begin(1)
    async with trio.open_nursery() as callers:
        callers.start_soon(expect, flights, DeadlineExceeded)
        await trio.testing.wait_all_tasks_blocked()
        flights.carry_on(1, Work())
    assert 1 not in flights


def test_of_a_nurserys_errors_a_bug_is_told_before_one_of_ours() -> None:
    ours, bug = Untrusted("a"), ZeroDivisionError()
    assert first_error(ours) is ours
    assert first_error(ExceptionGroup("", [ours])) is ours
    assert first_error(ExceptionGroup("", [ours, ExceptionGroup("", [NotFound("b"), bug])])) is bug
    assert first_error(ExceptionGroup("", [ExceptionGroup("", [ours]), NotFound("b")])) is ours
