"""`BreakerStore`: an `ObjectStore` that does not ask a mirror that is away.

A circuit breaker. Closed, it passes calls on; when several in a row have failed it opens, and all calls fail at once;
after a pause it lets one through, the probe, whose outcome closes it or begins a longer pause. What counts are whole
calls, with all that is tried again within them (it goes around `RetryingStore`): requests that fail for a moment in
between are no reason to refuse others. Belongs to the event loop.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import trio

from idcfs.errors import MirrorAway, ReadError, Unreachable
from idcfs.store.base import Arriving, Done, ListPage, ObjectStore, StoreAround, Storing

log = logging.getLogger(__name__)

FAILURES = 5
"""Calls in a row that fail before the breaker opens: one object that cannot be had is asked for twice or thrice."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds between probes, doubling: what was away for a moment is soon back; one that stays away costs little."""

_Answer = TypeVar("_Answer")
_Outcome = bytes | memoryview | ReadError


class BreakerState(NamedTuple):
    """How a mirror does.

    `state` is "closed" (it is asked), "open" (it is not) or "probing" (one call asks it); `failures` is how many calls
    in a row have failed, `reason` what the last of them said, and `retry_in` the seconds until the next may ask.
    """

    state: str
    failures: int
    reason: str | None
    retry_in: float | None


class BreakerStore(StoreAround):
    """Wraps *inner*, the store of a mirror that people call *name*."""

    def __init__(self, inner: ObjectStore, name: str) -> None:
        super().__init__(inner)
        self._name = name
        self._failures = 0
        self._reason: str | None = None
        # When it opened, and when the next probe may be; None while it is closed.
        self._opened: float | None = None
        self._next_probe = 0.0
        self._pause = FIRST_PAUSE
        self._is_probing = False

    @property
    def name(self) -> str:
        """What people call the mirror."""
        return self._name

    @property
    def state(self) -> BreakerState:
        """How the mirror does."""
        if self._opened is None:
            return BreakerState("closed", self._failures, self._reason, None)
        wait = round(max(0.0, self._next_probe - trio.current_time()), 1)
        return BreakerState("probing" if self._is_probing else "open", self._failures, self._reason, wait)

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; MirrorAway at once while the breaker is open."""
        return await self._ask(lambda: self._inner.list_page(bucket, prefix, token))

    async def get(
        self, bucket: str, key: str, start: int, stop: int, storing: Storing, arriving: Arriving | None = None
    ) -> bytes | memoryview:
        """See `ObjectStore.get`; MirrorAway at once while the breaker is open."""
        return await self._ask(lambda: self._inner.get(bucket, key, start, stop, storing, arriving))

    def get_soon(self, bucket: str, key: str, start: int, stop: int, storing: Storing, done: Done) -> bool:
        """See `ObjectStore.get_soon`; nothing is started while the breaker is open.

        It is one attempt, so that its failure does not count; but an answer shows that the mirror is there.
        """
        if self._opened is not None:
            return False
        if not self._failures:
            return self._inner.get_soon(bucket, key, start, stop, storing, done)

        def told(outcome: _Outcome) -> None:
            if not isinstance(outcome, Unreachable):
                self._close()
            done(outcome)

        return self._inner.get_soon(bucket, key, start, stop, storing, told)

    async def _ask(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        if self._opened is not None:
            return await self._probe(ask)
        try:
            answer = await ask()
        except Unreachable as error:
            self._note(error)
            raise
        except ReadError:
            # What is refused, or garbled, is an answer.
            self._close()
            raise
        if self._failures:
            self._close()
        return answer

    async def _probe(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Ask while the breaker is open, if nobody else does and the pause is over."""
        wait = self._next_probe - trio.current_time()
        if self._is_probing or wait > 0:
            when = "it is being asked now" if self._is_probing else f"it is asked again in {wait:.0f} s"
            raise MirrorAway(f"mirror {self._name} is away, {when}; last: {self._reason}")
        self._is_probing = True
        try:
            answer = await ask()
        except Unreachable as error:
            self._reason = str(error)
            self._failures += 1
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._next_probe = trio.current_time() + self._pause
            log.debug("mirror %s is still away: %s", self._name, error)
            raise
        except ReadError:
            self._close()
            raise
        finally:
            # Of a probe that was cancelled nothing is known, and the next call may be one.
            self._is_probing = False
        self._close()
        return answer

    def _note(self, error: Unreachable) -> None:
        """A call has failed that was made while the breaker was closed."""
        self._failures += 1
        self._reason = str(error)
        if self._failures >= FAILURES and self._opened is None:
            self._opened = trio.current_time()
            self._pause = FIRST_PAUSE
            self._next_probe = self._opened + self._pause
            log.warning("mirror %s is away and is asked no more than now and then: %s", self._name, error)

    def _close(self) -> None:
        """The mirror has answered."""
        if self._opened is not None:
            log.info("mirror %s answers again, after %.0f s", self._name, trio.current_time() - self._opened)
        self._failures, self._reason, self._opened = 0, None, None
