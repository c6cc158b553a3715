"""`Watch`: looks now and then whether what was asked for is coming; asyncio, one for each request.

A request costs one timer, whatever comes; nothing is done for each chunk of bytes.
"""

import asyncio
from collections.abc import Callable

STALL_PART = 1 / 6
"""Of a request's time, how long next to nothing may come.

5 s of 30 are more than a busy mirror takes, enough for TCP to send the first packet of a connection three times, and
leave time for several more attempts; 0.5 s of 3 are enough for a new connection across an ocean.
"""

LEAST_BYTES = 1 << 10
"""What has to come in that time; one byte a second is next to nothing. A guess: no link in use is so slow."""

LOOKS = 8
"""Looks in that time."""

FIRST = 1
"""The look after which others need not wait behind this request any more."""

HEDGE = 3
"""The look after which a request without an answer is sent again: after 2 s of 30, which is what AWS advises."""


class Watch:
    """Watches one request, which *limit* bounds.

    Args:
        limit: is made to expire when the request has stalled.
        seconds: what the request may take.
    """

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self.filled = 0
        """Bytes that have come; whoever reads them says so."""
        self.has_stalled = False
        self.patience = seconds * STALL_PART
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._seen = 0
        self._quiet = 0
        self._hint = 0
        self._take_hint: Callable[[], object] = lambda: None

    def expect(self, hint: int = 0, take_hint: Callable[[], object] = lambda: None) -> None:
        """From now on something has to come; *take_hint* is called once if next to nothing has in *hint* looks."""
        self.pause()
        self._seen, self._quiet = self.filled, 0
        self._hint, self._take_hint = hint, take_hint
        self._look_later()

    def pause(self) -> None:
        """Nothing is expected for a while, or any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(self.patience / LOOKS, self._look)

    def _look(self) -> None:
        if self.filled - self._seen >= LEAST_BYTES:
            self._seen, self._quiet = self.filled, 0
        else:
            self._quiet += 1
            if self._quiet == self._hint:
                self._hint = 0
                self._take_hint()
        if self._quiet < LOOKS:
            self._look_later()
        else:
            self.has_stalled = True
            self._limit.reschedule(self._loop.time())
