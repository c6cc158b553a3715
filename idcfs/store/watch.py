"""`Watch`: checks at intervals whether the bytes of a request still arrive; asyncio, one `Watch` for each request.

A request costs one timer, however many chunks of bytes arrive.
"""

import asyncio
from collections.abc import Callable

STALL_PART = 1 / 6
"""The part of a request's time after which it counts as stalled if next to nothing has arrived.

5 s of 30 are more than a busy mirror takes, enough for TCP to send the first packet of a connection three times, and
leave time for several more attempts. 0.5 s of 3 are enough for a new connection across an ocean.
"""

LEAST_BYTES = 1 << 10
"""Bytes in that time that are progress; fewer are next to nothing. This is a guess: no link in use is so slow."""

CHECKS = 8
"""Checks in that time."""

RELEASE_AFTER = 1
"""Checks without progress after which other bodies no longer wait for this one."""

HEDGE_AFTER = 3
"""Checks without an answer after which a request is sent again: after 2 s of 30, as AWS advises."""


class Watch:
    """Watches one request, which may take *seconds*; *limit*, the timeout around it, expires when it stalls."""

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self.filled = 0
        """The number of bytes that have arrived; the reader of the body sets it."""
        self.has_stalled = False
        self.stall_seconds = seconds * STALL_PART
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._seen = 0
        self._idle_checks = 0
        self._callback_after = 0
        self._callback: Callable[[], object] = lambda: None

    def expect(self, after: int = 0, callback: Callable[[], object] = lambda: None) -> None:
        """Expect bytes from now on; call *callback* once if there is no progress in *after* checks."""
        self.pause()
        self._seen, self._idle_checks = self.filled, 0
        self._callback_after, self._callback = after, callback
        self._schedule()

    def pause(self) -> None:
        """Expect nothing until the next `expect`."""
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        self._timer = self._loop.call_later(self.stall_seconds / CHECKS, self._check)

    def _check(self) -> None:
        if self.filled - self._seen >= LEAST_BYTES:
            self._seen, self._idle_checks = self.filled, 0
        else:
            self._idle_checks += 1
            if self._idle_checks == self._callback_after:
                self._callback_after = 0
                self._callback()
        if self._idle_checks < CHECKS:
            self._schedule()
        else:
            self.has_stalled = True
            self._limit.reschedule(self._loop.time())
