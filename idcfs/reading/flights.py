"""Single flight: callers that want the same thing at the same time share one piece of work; trio, one thread."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import trio

from idcfs.errors import DeadlineExceeded, IdcfsError, again, first_error

log = logging.getLogger(__name__)

_GRACE = 0.5
"""Seconds more that a caller waits for work that bounds itself, so that the error of the work gets there."""

K = TypeVar("K")
V = TypeVar("V")


class Flight(Generic[V]):
    """One piece of work under way; `is_over` once its value or its error is there."""

    def __init__(self, key: Any, deadline: float) -> None:
        self.key = key
        self.deadline = deadline
        self.waiting = 0
        self.value: V | None = None
        self.error: Exception | None = None
        self.done = trio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.done.is_set()


class Flights(Generic[K, V]):
    """Work under way, by key.

    Args:
        nursery: runs the work, so that it goes on when a caller is cancelled.
        timeout: returns the seconds that one piece of work may take.
        hold: makes the value of a flight the value of one more caller who waited.
        release: lets go of the value of a flight for which nobody waits any more.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        timeout: Callable[[], float],
        hold: Callable[[V], V] = lambda value: value,
        release: Callable[[V], object] = lambda value: None,
    ) -> None:
        self._nursery = nursery
        self._timeout = timeout
        self._hold = hold
        self._release = release
        self._flights: dict[K, Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        flight = self._flights.get(key)
        return flight is not None and not self._is_overdue(flight)

    def is_overdue(self, key: K) -> bool:
        """Whether the work under *key* should have come by now; whoever wants it does it again."""
        flight = self._flights.get(key)
        return flight is not None and self._is_overdue(flight)

    def _is_overdue(self, flight: Flight[V]) -> bool:
        return trio.current_time() >= flight.deadline + _GRACE

    def begin(self, key: K) -> Flight[V]:
        """Say that the work under *key* is under way; `land` or `fail` has to follow."""
        flight = self._flights[key] = Flight(key, trio.current_time() + self._timeout())
        return flight

    def land(self, flight: Flight[V], value: V) -> None:
        """The work is done; callers that wait get its value."""
        if flight.is_over:
            return
        flight.value = self._hold(value)
        self._end(flight)

    def fail(self, flight: Flight[V], error: Exception) -> None:
        """The work has failed; callers that wait get the error."""
        if flight.is_over:
            return
        if not flight.waiting and not isinstance(error, IdcfsError):
            log.error("work that nobody waits for has failed", exc_info=error)
        flight.error = error
        self._end(flight)

    def _end(self, flight: Flight[V]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        flight.done.set()
        self._release_unwanted(flight)

    def _release_unwanted(self, flight: Flight[V]) -> None:
        if not flight.waiting and flight.value is not None:
            self._release(flight.value)
            flight.value = None

    async def wait(self, key: K) -> V:
        """The value of the work under *key*, which is under way.

        Raises:
            DeadlineExceeded: it took longer than the timeout, or could not be started any more.
            Exception: what the work raised.
        """
        flight = self._flights.get(key)
        if flight is None:
            raise DeadlineExceeded("the mount is ending")
        timeout = self._timeout()
        flight.waiting += 1
        try:
            with trio.move_on_after(timeout + _GRACE):
                await flight.done.wait()
            if not flight.is_over:
                raise DeadlineExceeded(f"no answer within {timeout:g} seconds")
            if isinstance(flight.error, IdcfsError):
                raise again(flight.error) from flight.error
            if flight.error is not None:
                raise flight.error
            return self._hold(flight.value)  # type: ignore[arg-type]  # set where `error` is None
        finally:
            flight.waiting -= 1
            if flight.is_over:
                self._release_unwanted(flight)

    async def join(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The value of the work under *key*, which a task does if it is not under way.

        Raises:
            As `wait`.
        """
        if key not in self:
            self.start([self.begin(key)], self._fly, key, work)
        return await self.wait(key)

    async def fly(self, key: K, work: Callable[[], Awaitable[V]]) -> None:
        """Do the work under *key* in this task, unless it is under way; what it raises is for callers that wait."""
        if key not in self:
            self.begin(key)
            await self._fly(key, work)

    async def _fly(self, key: K, work: Callable[[], Awaitable[V]]) -> None:
        flight = self._flights[key]
        with self.bounded([flight]):
            self.land(flight, await work())

    def start(self, flights: Iterable[Flight[V]], work: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Start a task for work that *flights* wait for."""
        try:
            self._nursery.start_soon(work, *arguments)
        except RuntimeError:
            # The mount is ending, and the nursery is closed.
            for flight in flights:
                self.fail(flight, DeadlineExceeded("the mount is ending"))

    @contextlib.contextmanager
    def bounded(self, flights: Iterable[Flight[V]]) -> Iterator[None]:
        """Bound the time of work that *flights* wait for; those that have not landed at its end fail."""
        error: Exception = DeadlineExceeded("the mount is ending")
        timeout = self._timeout()
        try:
            with trio.fail_after(timeout):
                yield
        except trio.TooSlowError:
            error = DeadlineExceeded(f"no answer within {timeout:g} seconds")
        except Exception as failure:
            # Not only ours: what is unexpected goes to callers that wait, and does not end the mount.
            error = first_error(failure)
        finally:
            for flight in flights:
                self.fail(flight, error)
