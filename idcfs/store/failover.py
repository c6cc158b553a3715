"""`FailoverStore`: an `ObjectStore` over mirrors that hold the same objects.

Each call asks the first mirror, and the next one if a mirror is `Unreachable` or `Untrusted`. Keys are the same in all
mirrors; buckets are translated. An ETag belongs to one mirror, so the ETags of all but the first carry their mirror's
name (``gcs:"abc"``), also in cached listings. Another mirror's ETag of the same object is looked up when it is needed.
Used in the event loop only.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self, TypeVar

import trio
from cachetools import LRUCache

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, Stalled, Unreachable, Untrusted
from idcfs.store.base import MD5_ETAG, Body, Finished, ListPage, ObjectStore, ObjectVersion, Progress, Range
from idcfs.store.mirror import Mirror
from idcfs.store.retry import REPORT_SECONDS

REMEMBERED_ETAGS = 10_000
"""Objects whose ETags in another mirror are remembered, about 300 bytes each."""

_Answer = TypeVar("_Answer")


class Member(NamedTuple):
    """A mirror and its store."""

    mirror: Mirror
    store: ObjectStore


class _Position(NamedTuple):
    """Where a listing continues: the mirror's word, its bucket, the last key so far, and the mirror's own token."""

    word: str
    bucket: str
    after: str
    token: str


class FailoverStore:
    """Asks *members* in their order. Callers name the buckets of the first."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._stack = AsyncExitStack()
        self._etags = LRUCache[tuple[str, str, str], str](REMEMBERED_ETAGS)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for member in self._members:
                await stack.enter_async_context(member.store)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.__aexit__(*error)

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; the pages of one listing may come from several mirrors."""
        position = None if token is None else _Position(*json.loads(token))

        async def ask(member: Member, own_bucket: str) -> ListPage:
            if position is None:
                page = await member.store.list_page(own_bucket, prefix)
            elif position.word == member.mirror.word:
                own_bucket = position.bucket
                page = await member.store.list_page(own_bucket, prefix, position.token)
            else:
                page = await _page_after(member, own_bucket, prefix, position.after)
            return _tagged(page, member, own_bucket, self._tag(member))

        return await self._ask_each(ask, bucket, "" if position is None else position.word)

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        """See `ObjectStore.get`; each mirror that is asked calls *progress* from the first byte again."""

        async def ask(member: Member, own_bucket: str) -> Body:
            own, is_certain = self._own_range(member, own_bucket, wanted)
            try:
                return await member.store.get(own, progress)
            except ObjectChanged:
                listed = await self._learn(member, own_bucket, wanted)
                if is_certain and listed != own:
                    raise
            try:
                return await member.store.get(listed, progress)
            except ObjectChanged as error:
                # Another mirror may do better.
                raise Untrusted(f"mirror {member.mirror.word} refuses what it lists: {error}") from error

        return await self._ask_each(ask, wanted.bucket)

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        """See `ObjectStore.get_soon`: one attempt, with the first mirror that can be asked now."""
        for member in self._members:
            own, _ = self._own_range(member, self._own_buckets(member, wanted.bucket)[0], wanted)
            if member.store.get_soon(own, finished):
                return True
        return False

    async def _ask_each(self, ask: Callable[[Member, str], Awaitable[_Answer]], bucket: str, word: str = "") -> _Answer:
        """Return the first answer that can be used; the time that is left is divided equally between the mirrors.

        The mirror called *word* is asked before the others.
        """
        failures: list[Unreachable | Untrusted] = []
        for at, member in enumerate(sorted(self._members, key=lambda member: member.mirror.word != word)):
            left = trio.current_effective_deadline() - trio.current_time() - REPORT_SECONDS
            part = max(0.0, left) / (len(self._members) - at)
            try:
                with trio.move_on_after(part):
                    if not failures:
                        return await ask(member, bucket)
                    return await self._ask_buckets(ask, member, bucket, failures)
                failures.append(Stalled(f"mirror {member.mirror.word}: no complete answer within {part:.2g} seconds"))
            except (Unreachable, Untrusted) as error:
                failures.append(error)
        # The last error gives the type, because the last mirror was asked in all its buckets.
        raise type(failures[-1])("; ".join(str(failure) for failure in failures))

    async def _ask_buckets(
        self,
        ask: Callable[[Member, str], Awaitable[_Answer]],
        member: Member,
        bucket: str,
        failures: Sequence[Unreachable | Untrusted],
    ) -> _Answer:
        """Return the answer of a mirror that is asked in place of another, from the first of its buckets that has one.

        If none has one, an error of the type of the last failure is raised, and not `NotFound`: the mirrors before this
        one may have the object.
        """
        for own_bucket in self._own_buckets(member, bucket):
            try:
                answer = await ask(member, own_bucket)
            except (NotFound, AccessDenied):
                continue
            if not (isinstance(answer, ListPage) and not answer.objects and answer.token is None):
                return answer
        raise type(failures[-1])(f"mirror {member.mirror.word} does not have it")

    def _own_buckets(self, member: Member, bucket: str) -> tuple[str, ...]:
        """A mirror's buckets, in the order to try them, for a bucket of the first mirror."""
        first = self._members[0].mirror
        return (bucket,) if member.mirror is first else member.mirror.candidates(first.index_bucket(bucket))

    # ETags.

    def _tag(self, member: Member) -> str:
        """The text before a mirror's ETags."""
        return "" if member is self._members[0] else f"{member.mirror.word}:"

    def _own_range(self, member: Member, bucket: str, wanted: Range) -> tuple[Range, bool]:
        """Return the range to ask a mirror's *bucket* for, and whether its ETag is known to be that mirror's.

        If it is not known, another mirror's ETag is tried: where ETags are MD5s, they are the same in both.
        """
        etag, size = wanted.version
        owner = self._owner(etag)
        learned = None if owner is member else self._etags.get((member.mirror.word, wanted.key, etag))
        own = ObjectVersion(etag.removeprefix(self._tag(owner)) if learned is None else learned, size)
        return wanted._replace(bucket=bucket, version=own), owner is member or learned is not None

    def _owner(self, etag: str) -> Member:
        """The mirror that an ETag belongs to."""
        return next(member for member in reversed(self._members) if etag.startswith(self._tag(member)))

    async def _learn(self, member: Member, bucket: str, wanted: Range) -> Range:
        """Look up, and remember, a mirror's own ETag; return the range with it."""
        key, version = wanted.key, wanted.version
        page = await member.store.list_page(bucket, key)
        found = next((found for found in page.objects if found.key == key), None)
        if found is None:
            raise NotFound(f"mirror {member.mirror.word} does not list {bucket}/{key}")
        plain = version.etag.removeprefix(self._tag(self._owner(version.etag)))
        is_other = MD5_ETAG.fullmatch(plain) and MD5_ETAG.fullmatch(found.etag) and found.etag != plain
        if is_other or found.size != version.size:
            raise ObjectChanged(f"mirror {member.mirror.word}: {bucket}/{key} is not what was listed: {found.etag!r}")
        self._etags[member.mirror.word, key, version.etag] = found.etag
        return wanted._replace(bucket=bucket, version=found.version)


def _tagged(page: ListPage, member: Member, bucket: str, tag: str) -> ListPage:
    """The page with the mirror's name in its ETags and its token."""
    objects = [found._replace(etag=tag + found.etag) for found in page.objects] if tag else page.objects
    if page.token is None:
        return ListPage(objects, None)
    after = objects[-1].key if objects else ""
    return ListPage(objects, json.dumps(_Position(member.mirror.word, bucket, after, page.token)))


async def _page_after(member: Member, bucket: str, prefix: str, after: str) -> ListPage:
    """The next page, with keys beyond *after*, of a listing that another mirror has begun."""
    token = None
    while True:
        page = await member.store.list_page(bucket, prefix, token)
        objects = [found for found in page.objects if found.key > after]
        token = page.token
        if objects or token is None:
            return ListPage(objects, token)
