"""Single flight: callers that want the same thing at the same time share one piece of work; trio, one thread."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from idcfs.errors import DeadlineExceeded, IdcfsError, again, first_error

_GRACE = 0.5
"""Seconds more that those who wait give to work that bounds itself, so that they hear its own error."""

K = TypeVar("K")
V = TypeVar("V")


class _Flight(Generic[V]):
    def __init__(self, deadline: float) -> None:
        self.done = trio.Event()
        self.deadline = deadline
        # Whether no task does it, so that nothing ends it at its deadline.
        self.is_loose = True
        self.is_awaited = False
        self.value: V | None = None
        # What those who wait are told if the work is cancelled.
        self.error: Exception | None = DeadlineExceeded("the mount is ending")


class Flights(Generic[K, V]):
    """Work under way, by key.

    Args:
        nursery: runs the work, so that it goes on when a caller is cancelled.
        timeout: seconds that one piece of work may take, or what gives them when it begins.
    """

    def __init__(self, nursery: trio.Nursery, timeout: float | Callable[[], float]) -> None:
        self._nursery = nursery
        self._timeout = timeout if callable(timeout) else lambda: timeout
        self._flights: dict[K, _Flight[V]] = {}

    def __contains__(self, key: K) -> bool:
        return self._find(key) is not None

    def _find(self, key: K) -> _Flight[V] | None:
        """The work under *key*, unless it should have come by now: then the next caller does it again."""
        flight = self._flights.get(key)
        if flight is not None and flight.is_loose and trio.current_time() > flight.deadline:
            return None
        return flight

    async def join(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The result of the work under *key*, which is started if it is not under way.

        Raises:
            DeadlineExceeded: it took longer than the timeout.
            IdcfsError: what the work raises.
        """
        flight = self._find(key)
        if flight is None:
            flight = self._begin(key, is_loose=False)
            self._nursery.start_soon(self._fly, key, flight, work)
        flight.is_awaited = True
        with trio.move_on_after(self._timeout() + _GRACE):
            await flight.done.wait()
        if not flight.done.is_set():
            raise DeadlineExceeded(f"no answer within {self._timeout():g} seconds")
        if isinstance(flight.error, IdcfsError):
            raise again(flight.error) from flight.error
        if flight.error is not None:
            raise flight.error
        return flight.value  # type: ignore[return-value]  # set where `error` is None

    async def fly(self, key: K, work: Callable[[], Awaitable[V]]) -> None:
        """Do the work under *key* in this task, unless it is under way; what it raises is for those who join."""
        if key not in self:
            await self._fly(key, self._begin(key, is_loose=False), work)

    def begin(self, key: K) -> None:
        """Say that the work under *key* is under way; `land`, `fail` or `carry_on` has to follow.

        If that takes longer than the timeout, somebody else may do the work meanwhile, and it changes nothing.
        """
        self._begin(key, is_loose=True)

    def _begin(self, key: K, is_loose: bool) -> _Flight[V]:
        flight = self._flights[key] = _Flight(trio.current_time() + self._timeout())
        flight.is_loose = is_loose
        return flight

    def is_awaited(self, key: K) -> bool:
        """Whether somebody has joined the work that is under way under *key*."""
        flight = self._flights.get(key)
        return flight is not None and flight.is_awaited

    def land(self, key: K, value: V) -> None:
        """The work that was begun under *key* is done."""
        flight = self._take(key)
        if flight is not None:
            flight.value, flight.error = value, None
            flight.done.set()

    def fail(self, key: K, error: Exception) -> None:
        """The work that was begun under *key* has failed."""
        flight = self._take(key)
        if flight is not None:
            flight.error = first_error(error)
            flight.done.set()

    def _take(self, key: K) -> _Flight[V] | None:
        """The work that was begun under *key*, which is under way no more."""
        flight = self._flights.get(key)
        return self._flights.pop(key) if flight is not None and flight.is_loose else None

    def carry_on(self, key: K, work: Callable[[], Awaitable[V]]) -> None:
        """Have the work that was begun under *key* done in a task after all."""
        flight = self._flights.get(key)
        if flight is None or not flight.is_loose:
            return
        flight.is_loose = False
        try:
            self._nursery.start_soon(self._fly, key, flight, work)
        except RuntimeError:
            # The mount is ending, and the nursery is closed.
            del self._flights[key]
            flight.done.set()

    async def _fly(self, key: K, flight: _Flight[V], work: Callable[[], Awaitable[V]]) -> None:
        try:
            with trio.fail_after(self._timeout()):
                flight.value = await work()
            flight.error = None
        except trio.TooSlowError:
            flight.error = DeadlineExceeded(f"no answer within {self._timeout():g} seconds")
        except Exception as error:
            # Not only ours: what is unexpected goes to those who wait, and does not end the mount.
            flight.error = first_error(error)
        finally:
            del self._flights[key]
            flight.done.set()
