"""`BreakerStore`: a circuit breaker, an `ObjectStore` that does not ask a mirror that is away.

A closed breaker passes calls on. When several calls in a row have failed it opens, and calls fail at once. After a
pause one call passes, the probe: if it is answered the breaker closes, otherwise a longer pause begins. It wraps
`RetryingStore`, so that a call counts as failed only when all its attempts have failed.

Failures of listings and of bytes are counted apart, because a proxy may pass listings and block images. Usually the
whole mirror is away, so failures of one kind stop both kinds, and an answer of either lets both pass. A kind that keeps
failing while the other is answered is then treated separately: it stops only itself, until it is answered.

Used in the event loop only.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import NamedTuple, TypeVar

import trio

from idcfs.errors import MirrorAway, ReadError, Unreachable
from idcfs.store.base import Body, Finished, ListPage, ObjectStore, Progress, Range, StoreWrapper

log = logging.getLogger(__name__)

FAILURES = 5
"""Calls in a row that fail before the breaker opens; an object that cannot be read is asked for two or three times."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds between probes, which double: the end of a short outage is seen soon, and a long one costs few requests."""

_Answer = TypeVar("_Answer")


class _Kind(Enum):
    LISTING = "listing"
    BYTES = "bytes"


class BreakerState(NamedTuple):
    """The state of a mirror.

    `state` is "closed" (it is asked), "open" (it is not asked for bytes, for listings, or for both) or "probing" (one
    call asks it). `failures` is the number of calls in a row that have failed, `reason` the error of the last, and
    `retry_in` the seconds until the next probe.
    """

    state: str
    failures: int
    reason: str | None
    retry_in: float | None


class BreakerStore(StoreWrapper):
    """Wraps *inner*, the store of the mirror that users know as *name*."""

    def __init__(self, inner: ObjectStore, name: str) -> None:
        super().__init__(inner)
        self.name = name
        self._failures: Counter[_Kind] = Counter()
        self._reason: str | None = None
        # The kinds of calls that do not pass.
        self._shut: set[_Kind] = set()
        # The kinds that were failing when the other kind was answered, and have not been answered since.
        self._separate: set[_Kind] = set()
        # When the breaker opened, and when the next probe may pass; valid while `_shut` is not empty.
        self._opened = self._next_probe = 0.0
        self._pause = FIRST_PAUSE
        self._is_probing = False

    @property
    def state(self) -> BreakerState:
        """The mirror's present state."""
        if not self._shut:
            return BreakerState("closed", self._failures.total(), self._reason, None)
        wait = round(max(0.0, self._next_probe - trio.current_time()), 1)
        return BreakerState("probing" if self._is_probing else "open", self._failures.total(), self._reason, wait)

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; raises MirrorAway at once while the breaker is open."""
        return await self._ask(_Kind.LISTING, lambda: self._inner.list_page(bucket, prefix, token))

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        """See `ObjectStore.get`; raises MirrorAway at once while the breaker is open."""
        return await self._ask(_Kind.BYTES, lambda: self._inner.get(wanted, progress))

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        """See `ObjectStore.get_soon`; starts nothing while the breaker is open.

        Its failure does not count, because it is a single attempt; its answer shows that the mirror is back.
        """
        if _Kind.BYTES in self._shut:
            return False
        if not self._failures:
            return super().get_soon(wanted, finished)

        def answered(outcome: Body | ReadError) -> None:
            if not isinstance(outcome, Unreachable):
                self._note_answer(_Kind.BYTES)
            finished(outcome)

        return super().get_soon(wanted, answered)

    async def _ask(self, kind: _Kind, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Pass the call if its kind passes, or as a probe if the pause is over and no other call is one.

        Raises:
            MirrorAway: it does not pass.
        """
        is_probe = kind in self._shut
        if is_probe:
            wait = self._next_probe - trio.current_time()
            if self._is_probing or wait > 0:
                when = "it is being asked now" if self._is_probing else f"it is asked again in {wait:.0f} s"
                raise MirrorAway(f"mirror {self.name} is away, {when}; last: {self._reason}")
            self._is_probing = True
        try:
            answer = await ask()
        except Unreachable as error:
            self._note_failure(kind, error, is_probe)
            raise
        except ReadError:
            # A refusal or a garbled answer is an answer too.
            self._note_answer(kind)
            raise
        finally:
            if is_probe:
                # A cancelled probe has no outcome; the next call may be the probe.
                self._is_probing = False
        if self._failures:
            self._note_answer(kind)
        return answer

    def _note_failure(self, kind: _Kind, error: Unreachable, is_probe: bool) -> None:
        """Count a call that failed; wait longer after a probe, open the breaker after too many other calls."""
        self._failures[kind] += 1
        self._reason = str(error)
        now = trio.current_time()
        if is_probe:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._next_probe = now + self._pause
            log.debug("mirror %s is still away: %s", self.name, error)
        elif self._failures[kind] >= FAILURES:
            if not self._shut:
                self._opened, self._pause, self._next_probe = now, FIRST_PAUSE, now + FIRST_PAUSE
                log.warning("mirror %s is away and is asked only once in a while: %s", self.name, error)
            self._shut |= {kind} if kind in self._separate else set(_Kind)

    def _note_answer(self, kind: _Kind) -> None:
        """Reset the count of an answered kind, and close the breaker but for kinds that fail separately."""
        del self._failures[kind]
        if not self._failures:
            self._reason = None
        was_shut, self._shut = self._shut, (self._shut & self._separate) - {kind}
        self._separate = (self._separate | self._failures.keys()) - {kind}
        if was_shut and not self._shut:
            log.info("mirror %s answers again, after %.0f s", self.name, trio.current_time() - self._opened)
