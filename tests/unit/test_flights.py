"""Callers who want the same thing at the same time share one flight, which ends for all of them."""

import contextlib

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from idcfs.errors import CatalogueDamaged, DeadlineExceeded, NotFound, Untrusted, first_error
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.reading.flights import Flight, Flights
from tests.conftest import WarningsLogged


def flights_in(nursery: trio.Nursery, seconds: float = 60) -> Flights[int, str]:
    return Flights[int, str](nursery, lambda: seconds)


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


def opened() -> Work:
    work = Work()
    work.may_end.set()
    return work


async def test_callers_of_one_key_share_one_piece_of_work(nursery: trio.Nursery) -> None:
    flights = flights_in(nursery)
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
        assert len(flights) == 2
        assert (work.started, other.started) == (1, 1)
        work.may_end.set()
        other.may_end.set()
    assert sorted(found) == ["done"] * 5 + ["other"]
    assert 1 not in flights
    assert len(flights) == 0
    assert await flights.join(1, work) == "done"
    assert work.started == 2


async def test_a_caller_who_gives_up_does_not_end_the_work(nursery: trio.Nursery) -> None:
    flights = flights_in(nursery)
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


@pytest.mark.parametrize(
    "error",
    [NotFound("gone"), CatalogueDamaged("bad"), ZeroDivisionError("a bug"), ExceptionGroup("", [NotFound("gone")])],
)
async def test_every_caller_gets_the_error_and_the_next_one_tries_again(
    nursery: trio.Nursery, error: Exception
) -> None:
    flights = flights_in(nursery)
    work = Work(error)
    raised: list[Exception] = []

    async def call() -> None:
        try:
            await flights.join(1, work)
        except Exception as error:
            raised.append(error)

    async with trio.open_nursery() as callers:
        for _ in range(3):
            callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        work.may_end.set()
    expected = first_error(error)
    assert [(type(one), str(one)) for one in raised] == [(type(expected), str(expected))] * 3
    assert await flights.join(1, opened()) == "done"


async def test_the_deadline_holds(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    flights = flights_in(nursery, 30)
    with pytest.raises(DeadlineExceeded, match="30 seconds"):
        await flights.join(1, Work())
    assert trio.current_time() == pytest.approx(30)
    assert 1 not in flights


async def test_a_deadline_that_is_shortened_holds_for_what_is_begun_later(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    seconds = 30.0
    flights = Flights[int, str](nursery, lambda: seconds)
    seconds = 2.0
    with pytest.raises(DeadlineExceeded, match="2 seconds"):
        await flights.join(1, Work())
    assert trio.current_time() == pytest.approx(2)


async def test_the_end_of_the_mount_ends_the_wait() -> None:
    async with trio.open_nursery() as mount:
        flights = flights_in(mount)
        raised: list[str] = []

        async def call() -> None:
            with pytest.raises(DeadlineExceeded) as caught, trio.CancelScope(shield=True):
                await flights.join(1, Work())
            raised.append(str(caught.value))

        mount.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        mount.cancel_scope.cancel()
    assert raised == ["the mount is ending"]


async def test_an_overdue_flight_is_begun_again_and_its_late_landing_harms_nobody(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    flights = flights_in(nursery, 30)
    work, begun = Work("again"), trio.current_time()
    landed, failed = flights.begin(1), flights.begin(2)
    for key in (1, 2):
        assert key in flights
        assert not flights.is_overdue(key)
    async with trio.open_nursery() as callers:
        for key in (1, 2):
            callers.start_soon(expect, flights, key, DeadlineExceeded)
    assert 30 <= trio.current_time() - begun < 32
    found: list[str] = []

    async def call(key: int) -> None:
        found.append(await flights.join(key, work))

    async with trio.open_nursery() as callers:
        for key in (1, 2):
            assert key not in flights
            assert flights.is_overdue(key)
            callers.start_soon(call, key)
        await trio.testing.wait_all_tasks_blocked()
        for key in (1, 2):
            assert key in flights
            assert not flights.is_overdue(key)
        flights.land(landed, "late")
        flights.fail(failed, Untrusted("late"))
        assert landed.is_over
        assert failed.is_over
        await trio.testing.wait_all_tasks_blocked()
        assert not found, "what comes late is not what is waited for now"
        assert 1 in flights
        assert 2 in flights
        work.may_end.set()
    assert found == ["again"] * 2
    assert work.started == 2
    for flight in (landed, failed):
        flights.land(flight, "later still")
        flights.fail(flight, Untrusted("later still"))
    assert len(flights) == 0


async def test_work_is_done_in_the_callers_task_unless_it_is_under_way(nursery: trio.Nursery) -> None:
    flights = flights_in(nursery)
    work, other = Work(), Work("other")
    found: list[str] = []

    async def call() -> None:
        found.append(await flights.join(1, other))

    async with trio.open_nursery() as callers:
        callers.start_soon(flights.fly, 1, work)
        await trio.testing.wait_all_tasks_blocked()
        callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        await flights.fly(1, other)
        work.may_end.set()
    assert found == ["done"]
    assert (work.started, other.started) == (1, 0)


async def expect(flights: Flights[int, str], key: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        await flights.wait(key)


async def test_what_fails_in_the_callers_task_is_for_those_who_wait(nursery: trio.Nursery) -> None:
    flights = flights_in(nursery)
    work = Work(NotFound("gone"))
    async with trio.open_nursery() as callers:
        callers.start_soon(flights.fly, 1, work)
        await trio.testing.wait_all_tasks_blocked()
        callers.start_soon(expect, flights, 1, NotFound)
        await trio.testing.wait_all_tasks_blocked()
        work.may_end.set()
    assert 1 not in flights


async def test_what_was_begun_lands_for_all_who_wait(nursery: trio.Nursery) -> None:
    flights = flights_in(nursery)
    work = Work()
    found: list[str] = []

    async def wait() -> None:
        found.append(await flights.wait(1))

    async def join() -> None:
        found.append(await flights.join(1, work))

    flight = flights.begin(1)
    assert 1 in flights
    assert flight.waiting == 0
    async with trio.open_nursery() as callers:
        for call in (wait, join, wait):
            callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert flight.waiting == 3
        assert not flight.is_over
        flights.land(flight, "landed")
        assert flight.is_over
        # Nothing more comes of it.
        flights.land(flight, "again")
        flights.fail(flight, Untrusted("again"))
    assert found == ["landed"] * 3
    assert work.started == 0
    assert 1 not in flights


@pytest.mark.parametrize("error", [NotFound("gone"), ZeroDivisionError("a bug")])
async def test_what_was_begun_fails_for_all_who_wait(nursery: trio.Nursery, error: Exception) -> None:
    flights = flights_in(nursery)
    flight = flights.begin(1)
    async with trio.open_nursery() as callers:
        for _ in range(3):
            callers.start_soon(expect, flights, 1, type(error))
        await trio.testing.wait_all_tasks_blocked()
        flights.fail(flight, error)
        assert flight.error is error
    assert await flights.join(1, opened()) == "done"


async def test_a_bug_that_nobody_waits_for_is_logged(nursery: trio.Nursery, warnings_logged: WarningsLogged) -> None:
    flights = flights_in(nursery)
    flights.fail(flights.begin(1), Untrusted("which only says that it could not be had"))
    flights.fail(flights.begin(1), ZeroDivisionError("a bug"))
    assert "a bug" in warnings_logged.take("nobody waits for")


async def test_what_was_begun_is_ended_by_a_task_for_those_who_wait(nursery: trio.Nursery) -> None:
    flights = flights_in(nursery)
    found: list[str] = []
    may_end = trio.Event()

    async def work(flight: Flight[str]) -> None:
        with flights.bounded([flight]):
            await may_end.wait()
            flights.land(flight, "ended by the task")

    async def call() -> None:
        found.append(await flights.wait(1))

    flight = flights.begin(1)
    async with trio.open_nursery() as callers:
        callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        flights.start([flight], work, flight)
        callers.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert flight.waiting == 2
        may_end.set()
    assert found == ["ended by the task"] * 2
    assert 1 not in flights


async def test_what_a_task_does_not_land_fails_with_its_error_and_the_rest_has_landed(nursery: trio.Nursery) -> None:
    flights = flights_in(nursery)
    one, other = flights.begin(1), flights.begin(2)
    async with trio.open_nursery() as callers:
        callers.start_soon(expect, flights, 2, NotFound)
        await trio.testing.wait_all_tasks_blocked()
        with flights.bounded([one, other]):
            flights.land(one, "landed")
            raise ExceptionGroup("of a nursery", [NotFound("gone")])
    assert one.error is None
    assert isinstance(other.error, NotFound)
    assert len(flights) == 0


async def test_what_a_task_does_not_land_in_time_fails(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    flights = flights_in(nursery, 30)
    flight = flights.begin(1)
    with flights.bounded([flight]):
        await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(30)
    assert isinstance(flight.error, DeadlineExceeded)


async def test_work_that_is_to_be_started_after_the_mount_has_ended_is_given_up() -> None:
    async with trio.open_nursery() as mount:
        flights = flights_in(mount)
    work = Work()
    with pytest.raises(DeadlineExceeded, match="the mount is ending"):
        await flights.join(1, work)
    flight = flights.begin(1)
    async with trio.open_nursery() as callers:
        callers.start_soon(expect, flights, 1, DeadlineExceeded)
        await trio.testing.wait_all_tasks_blocked()
        flights.start([flight], work)
    assert work.started == 0
    assert len(flights) == 0


class LeaseFlights:
    """Flights of leases, as the fetcher has them, and the arena that they are of."""

    def __init__(self, nursery: trio.Nursery, arena: Arena) -> None:
        self.arena = arena
        self.flights = Flights[int, Lease](nursery, lambda: 60, Lease.hold, Lease.release)
        self.flight = self.flights.begin(1)

    def land(self) -> None:
        """Land, and let go of the lease as whoever lands it does."""
        lease = self.arena.take_now(5)
        assert lease is not None
        with lease:
            lease.view[:] = b"bytes"
            self.flights.land(self.flight, lease)

    async def take(self, release: trio.Event | None = None) -> None:
        """Wait for the lease, use it, and release it when told to."""
        with await self.flights.wait(1) as lease:
            assert bytes(lease.view) == b"bytes"
            if release is not None:
                await release.wait()
            assert bytes(lease.view) == b"bytes"


async def test_what_landed_is_held_until_the_last_who_waited_has_released_it(nursery: trio.Nursery) -> None:
    with Arena(100) as arena:
        leases = LeaseFlights(nursery, arena)
        may_release = [trio.Event() for _ in range(3)]
        async with trio.open_nursery() as callers:
            for event in may_release:
                callers.start_soon(leases.take, event)
            await trio.testing.wait_all_tasks_blocked()
            leases.land()
            for event in may_release:
                assert arena.leased == 5
                await trio.testing.wait_all_tasks_blocked()
                assert arena.leased == 5
                event.set()
        assert arena.leased == 0


async def test_what_landed_and_nobody_waits_for_is_not_held(nursery: trio.Nursery) -> None:
    with Arena(100) as arena:
        leases = LeaseFlights(nursery, arena)
        leases.land()
        assert arena.leased == 0
        assert leases.flight.is_over
        # As little as what lands twice, or after it has failed.
        leases.land()
        leases.flight = leases.flights.begin(1)
        leases.flights.fail(leases.flight, NotFound("gone"))
        leases.land()
        assert arena.leased == 0


async def test_whoever_gives_up_before_the_landing_holds_nothing(nursery: trio.Nursery) -> None:
    with Arena(100) as arena:
        leases = LeaseFlights(nursery, arena)
        with trio.move_on_after(0):
            await leases.take()
        assert leases.flight.waiting == 0
        leases.land()
        assert arena.leased == 0


@pytest.mark.parametrize("others", [0, 2])
async def test_whoever_is_cancelled_between_landing_and_waking_holds_nothing(
    nursery: trio.Nursery, others: int
) -> None:
    with Arena(100) as arena:
        leases = LeaseFlights(nursery, arena)
        may_release = trio.Event()
        async with trio.open_nursery() as callers:
            for _ in range(others):
                callers.start_soon(leases.take, may_release)
            async with trio.open_nursery() as impatient:
                impatient.start_soon(leases.take)
                await trio.testing.wait_all_tasks_blocked()
                leases.land()
                # In the same step of the loop, so that it has not woken yet.
                impatient.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert arena.leased == (5 if others else 0)
            may_release.set()
        assert arena.leased == 0


@given(st.lists(st.sampled_from(["wait", "cancel", "land", "fail", "begin", "turn"])))
async def test_whatever_happens_to_flights_nothing_stays_leased(steps: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        with Arena(1000) as arena:
            leases = LeaseFlights(nursery, arena)
            begun = [leases.flight]
            waiting: list[trio.CancelScope] = []

            async def wait(scope: trio.CancelScope) -> None:
                with scope, contextlib.suppress(NotFound):
                    await leases.take()

            for step in [*steps, "land", "turn"]:
                if step == "wait" and 1 in leases.flights:
                    waiting.append(trio.CancelScope())
                    nursery.start_soon(wait, waiting[-1])
                    # So that it waits for this flight.
                    await trio.testing.wait_all_tasks_blocked()
                elif step == "cancel" and waiting:
                    waiting.pop().cancel()
                elif step == "land":
                    leases.land()
                elif step == "fail":
                    leases.flights.fail(leases.flight, NotFound("gone"))
                elif step == "begin":
                    # As for one that is overdue.
                    leases.flight = leases.flights.begin(1)
                    begun.append(leases.flight)
                elif step == "turn":
                    await trio.testing.wait_all_tasks_blocked()
            for flight in begun:
                leases.flight = flight
                leases.land()
            await trio.testing.wait_all_tasks_blocked()
            assert arena.leased == 0
            assert [flight.waiting for flight in begun] == [0] * len(begun)
            nursery.cancel_scope.cancel()


def test_of_a_nurserys_errors_a_bug_is_raised_before_one_of_ours() -> None:
    ours, bug = Untrusted("a"), ZeroDivisionError()
    assert first_error(ours) is ours
    assert first_error(ExceptionGroup("", [ours])) is ours
    assert first_error(ExceptionGroup("", [ours, ExceptionGroup("", [NotFound("b"), bug])])) is bug
    assert first_error(ExceptionGroup("", [ExceptionGroup("", [ours]), NotFound("b")])) is ours
