"""`RetryingStore`: an `ObjectStore` that repeats calls that fail with `Unreachable` or `Untrusted`.

Waits grow exponentially with full jitter, so that the many readers of a recovering mirror do not return at the same
moment. The deadline is that of the caller's cancel scope; shortly before it the last error is raised, because its
reason is more useful than that time ran out.
"""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from idcfs.errors import Unreachable, Untrusted
from idcfs.store.base import Body, ListPage, ObjectStore, Progress, Range, StoreWrapper

_Answer = TypeVar("_Answer")

ATTEMPTS = 4
"""Attempts of one call by default; if all fail at once, they and the waits between them take up to a second."""

REPORT_SECONDS = 0.1
"""How long before the caller's deadline an error is raised, so that the caller still receives it."""


class RetryingStore(StoreWrapper):
    """Each call makes up to *attempts* attempts; `get_soon` makes one.

    The wait after failure n, counted from 1, is a random part of ``base_delay * 2**(n - 1)`` seconds, or of *max_delay*
    if that is less; no wait goes beyond the caller's deadline. The error of the last attempt is raised.
    """

    def __init__(
        self,
        inner: ObjectStore,
        *,
        attempts: int = ATTEMPTS,
        base_delay: float = 0.1,
        max_delay: float = 2.0,
        source: random.Random | None = None,
    ) -> None:
        super().__init__(inner)
        self._attempts = attempts
        self._base_delay = base_delay
        self._max_delay = max_delay
        self._random = source if source is not None else random.Random()

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; waits between attempts too."""
        return await self._retry(lambda: self._inner.list_page(bucket, prefix, token))

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        """See `ObjectStore.get`; waits between attempts too."""
        return await self._retry(lambda: self._inner.get(wanted, progress))

    async def _retry(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        # Nearly all calls succeed here, so the first attempt does nothing more.
        try:
            return await call()
        except (Unreachable, Untrusted) as error:
            failure: Unreachable | Untrusted = error
        with trio.move_on_at(trio.current_effective_deadline() - REPORT_SECONDS) as scope:
            for failures in range(self._attempts - 1):
                wait = self._random.uniform(0, min(self._max_delay, self._base_delay * 2**failures))
                if trio.current_time() + wait >= scope.deadline:
                    break
                await trio.sleep(wait)
                try:
                    return await call()
                except (Unreachable, Untrusted) as error:
                    failure = error
        raise failure
