"""What readers were told cannot be had, for some seconds; belongs to the event loop.

The kernel asks for a page that failed a second time at once, and would make the reader wait a second time as long. So
the second answer is the first one's error. What fails quickly is not remembered: to ask again costs little, and the
mirror may be back. Nor is what failed ahead of readers: nobody has waited for it.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

import trio

from idcfs.errors import ReadError, again

SECONDS = 3.0
"""How long a failure is remembered, a guess: the kernel asks again within milliseconds, on a busy machine later."""

SLOW = 1.0
"""Seconds that somebody has waited for a failure that is remembered."""

K = TypeVar("K", bound=Hashable)


class Failures(Generic[K]):
    """Errors by what was asked for."""

    def __init__(self) -> None:
        self._errors: dict[K, tuple[float, ReadError]] = {}

    def raise_again(self, key: K) -> None:
        """Raise the error that somebody was told of a moment ago."""
        if not self._errors:
            return
        until, error = self._errors.get(key, (0.0, None))
        if error is not None and trio.current_time() < until:
            raise again(error)

    def note(self, key: K, error: ReadError, asked: float) -> None:
        """Somebody who asked at *asked*, in trio's time, is being told of an error."""
        now = trio.current_time()
        self._errors = {other: failed for other, failed in self._errors.items() if failed[0] > now}
        if now - asked >= SLOW:
            self._errors[key] = now + SECONDS, error

    def forget(self, key: K) -> None:
        """It can be had after all."""
        if self._errors:
            self._errors.pop(key, None)
