"""Single flight: callers that want the same thing at the same time share one piece of work; trio, one thread."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from idcfs.errors import DeadlineExceeded, IdcfsError, first_error

K = TypeVar("K")
V = TypeVar("V")


class _Flight(Generic[V]):
    def __init__(self) -> None:
        self.done = trio.Event()
        self.value: V | None = None
        # What those who wait are told if the work is cancelled.
        self.error: Exception | None = DeadlineExceeded("the mount is ending")


class Flights(Generic[K, V]):
    """Work under way, by key.

    Args:
        nursery: runs the work, so that it goes on when a caller is cancelled.
        timeout: seconds that one piece of work may take.
    """

    def __init__(self, nursery: trio.Nursery, timeout: float) -> None:
        self._nursery = nursery
        self._timeout = timeout
        self._flights: dict[K, _Flight[V]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    async def join(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The result of the work under *key*, which is started if it is not under way.

        Raises:
            DeadlineExceeded: it took longer than the timeout.
            IdcfsError: what the work raises.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, work)
        await flight.done.wait()
        if isinstance(flight.error, IdcfsError):
            # A new exception for each caller: a shared one would collect all their tracebacks.
            raise type(flight.error)(*flight.error.args) from flight.error
        if flight.error is not None:
            raise flight.error
        return flight.value  # type: ignore[return-value]  # set where `error` is None

    async def _fly(self, key: K, flight: _Flight[V], work: Callable[[], Awaitable[V]]) -> None:
        try:
            with trio.fail_after(self._timeout):
                flight.value = await work()
            flight.error = None
        except trio.TooSlowError:
            flight.error = DeadlineExceeded(f"no answer within {self._timeout:g} seconds")
        except Exception as error:
            # Not only ours: what is unexpected goes to those who wait, and does not end the mount.
            flight.error = first_error(error)
        finally:
            del self._flights[key]
            flight.done.set()
