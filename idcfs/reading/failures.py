"""Errors that readers got, repeated from memory for some seconds; belongs to the event loop.

The kernel asks at once for a page that failed a second time, and the reader would wait twice as long. So the second
answer is the error of the first. An error that came quickly is not remembered: to ask again costs little, and the
mirror may be back. Nor is an error of what was fetched ahead: nobody has waited for it.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

import trio

from idcfs.errors import ReadError, again

SECONDS = 3.0
"""How long an error is remembered; a guess: the kernel asks again within milliseconds, on a busy machine later."""

SLOW = 1.0
"""Seconds that somebody must have waited for an error that is remembered."""

K = TypeVar("K", bound=Hashable)


class Failures(Generic[K]):
    """Errors by what was asked for."""

    def __init__(self) -> None:
        self._errors: dict[K, tuple[float, ReadError]] = {}

    def raise_again(self, key: K) -> None:
        """Raise the error that somebody got a moment ago, if there is one."""
        if not self._errors:
            return
        until, error = self._errors.get(key, (0.0, None))
        if error is not None and trio.current_time() < until:
            raise again(error)

    def note(self, key: K, error: ReadError, asked: float) -> None:
        """Somebody who asked at *asked*, in trio's time, gets an error now."""
        now = trio.current_time()
        self._errors = {other: failed for other, failed in self._errors.items() if failed[0] > now}
        if now - asked >= SLOW:
            self._errors[key] = now + SECONDS, error

    def forget(self, key: K) -> None:
        """Forget the error: it can be had after all."""
        if self._errors:
            self._errors.pop(key, None)
