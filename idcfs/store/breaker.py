"""`BreakerStore`: an `ObjectStore` that does not ask a mirror that is away.

A circuit breaker. Closed, it passes calls on; when several in a row have failed it opens, and all calls fail at once;
after a pause it lets one through, the probe, whose outcome closes it or begins a longer pause. What counts are whole
calls, with all that is tried again within them (it goes around `RetryingStore`): requests that fail for a moment in
between are no reason to refuse others.

Listings and bytes are counted each by themselves: something in between may let listings through, and no images. As
mostly all is away, what fails shuts off both, and an answer opens both; but a kind that goes on failing while the other
is answered stands alone then: it shuts off nothing else, and only its own answer helps.

Belongs to the event loop.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import NamedTuple, TypeVar

import trio

from idcfs.errors import MirrorAway, ReadError, Unreachable
from idcfs.store.base import Body, Finished, ListPage, ObjectStore, ObjectVersion, Progress, StoreAround

log = logging.getLogger(__name__)

FAILURES = 5
"""Calls in a row that fail before the breaker opens: one object that cannot be had is asked for twice or thrice."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds between probes, doubling: what was away for a moment is soon back; one that stays away costs little."""

_Answer = TypeVar("_Answer")
_Outcome = Body | ReadError


class _Kind(Enum):
    LISTING = "listing"
    BYTES = "bytes"


class BreakerState(NamedTuple):
    """How a mirror does.

    `state` is "closed" (it is asked), "open" (it is not, or not for bytes, or not for listings) or "probing" (one call
    asks it); `failures` is how many calls in a row have failed, `reason` what the last of them said, and `retry_in` the
    seconds until the next may ask.
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
        self._failures: Counter[_Kind] = Counter()
        self._reason: str | None = None
        # What is not let through.
        self._shut: set[_Kind] = set()
        # What had failed last when the other kind was answered, and was not answered since.
        self._alone: set[_Kind] = set()
        # Of what is shut.
        self._opened = self._next_probe = 0.0
        self._pause = FIRST_PAUSE
        self._is_probing = False

    @property
    def name(self) -> str:
        """What people call the mirror."""
        return self._name

    @property
    def state(self) -> BreakerState:
        """How the mirror does."""
        if not self._shut:
            return BreakerState("closed", self._failures.total(), self._reason, None)
        wait = round(max(0.0, self._next_probe - trio.current_time()), 1)
        return BreakerState("probing" if self._is_probing else "open", self._failures.total(), self._reason, wait)

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; MirrorAway at once while the breaker is open."""
        return await self._ask(_Kind.LISTING, lambda: self._inner.list_page(bucket, prefix, token))

    async def get(
        self, bucket: str, key: str, start: int, stop: int, version: ObjectVersion, progress: Progress | None = None
    ) -> Body:
        """See `ObjectStore.get`; MirrorAway at once while the breaker is open."""
        return await self._ask(_Kind.BYTES, lambda: self._inner.get(bucket, key, start, stop, version, progress))

    def get_soon(
        self, bucket: str, key: str, start: int, stop: int, version: ObjectVersion, finished: Finished
    ) -> bool:
        """See `ObjectStore.get_soon`; nothing is started while the breaker is open.

        It is one attempt, so that its failure does not count; but an answer shows that the mirror is there.
        """
        if _Kind.BYTES in self._shut:
            return False
        if not self._failures:
            return self._inner.get_soon(bucket, key, start, stop, version, finished)

        def told(outcome: _Outcome) -> None:
            if not isinstance(outcome, Unreachable):
                self._note_answer(_Kind.BYTES)
            finished(outcome)

        return self._inner.get_soon(bucket, key, start, stop, version, told)

    async def _ask(self, kind: _Kind, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        if kind in self._shut:
            return await self._probe(kind, ask)
        try:
            answer = await ask()
        except Unreachable as error:
            self._note_failure(kind, error)
            raise
        except ReadError:
            # What is refused, or garbled, is an answer.
            self._note_answer(kind)
            raise
        if self._failures:
            self._note_answer(kind)
        return answer

    async def _probe(self, kind: _Kind, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Ask what is shut off, if nobody else does and the pause is over."""
        wait = self._next_probe - trio.current_time()
        if self._is_probing or wait > 0:
            when = "it is being asked now" if self._is_probing else f"it is asked again in {wait:.0f} s"
            raise MirrorAway(f"mirror {self._name} is away, {when}; last: {self._reason}")
        self._is_probing = True
        try:
            answer = await ask()
        except Unreachable as error:
            self._reason = str(error)
            self._failures[kind] += 1
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._next_probe = trio.current_time() + self._pause
            log.debug("mirror %s is still away: %s", self._name, error)
            raise
        except ReadError:
            self._note_answer(kind)
            raise
        finally:
            # Of a probe that was cancelled nothing is known, and the next call may be one.
            self._is_probing = False
        self._note_answer(kind)
        return answer

    def _note_failure(self, kind: _Kind, error: Unreachable) -> None:
        """A call has failed that was let through."""
        self._failures[kind] += 1
        self._reason = str(error)
        if self._failures[kind] < FAILURES:
            return
        if not self._shut:
            self._opened = trio.current_time()
            self._pause = FIRST_PAUSE
            self._next_probe = self._opened + self._pause
            log.warning("mirror %s is away and is asked no more than now and then: %s", self._name, error)
        self._shut |= {kind} if kind in self._alone else set(_Kind)

    def _note_answer(self, kind: _Kind) -> None:
        """The mirror has answered."""
        del self._failures[kind]
        if not self._failures:
            self._reason = None
        was_shut, self._shut = self._shut, (self._shut & self._alone) - {kind}
        self._alone = (self._alone | self._failures.keys()) - {kind}
        if was_shut and not self._shut:
            log.info("mirror %s answers again, after %.0f s", self._name, trio.current_time() - self._opened)
