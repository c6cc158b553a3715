"""Requests to the mirror: bytes of one version only, from wherever the object is, and every lease released."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, ReadError, Unreachable, Untrusted
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.reading.listings import Listing
from idcfs.reading.policy import Extent
from idcfs.reading.requests import Requests
from idcfs.store.base import Body, Progress, Range
from tests.bodies import copied
from tests.memory_store import MemoryStore
from tests.processes import until_true
from tests.unit.listed import BUCKET, Listed, open_listed, put

OLD, NEW = b"old bytes", b"new bytes"
WHOLE = Extent(0, 0, 0, len(OLD))


class LeasingStore(MemoryStore):
    """Returns leases, as the store of a mirror that is far away does, and holds back as many answers as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.held_back = 0
        self.gate = trio.Event()
        self.refused: dict[str, Exception] = {}
        """What is raised for the objects of a bucket."""

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        if wanted.bucket in self.refused:
            raise self.refused[wanted.bucket]
        body = await super().get(wanted)
        assert isinstance(body, bytes)
        assert self.arena is not None
        with await self.arena.take(len(body)) as lease:
            lease.view[:] = body
            if self.held_back:
                self.held_back -= 1
                await self.gate.wait()
            return lease.hold()


class World:
    """Requests of a store with one instance; the bytes that it returns are in *arena*."""

    def __init__(self, store: LeasingStore, listed: Listed, arena: Arena) -> None:
        self.store = store
        self.arena = arena
        self.listed = listed
        self.stored_anew: list[tuple[Extent, Listing]] = []
        self.requests = Requests(store, listed.mirror, listed.listings, listed.metrics, self._note)

    async def _note(self, extent: Extent, listing: Listing) -> None:
        assert [request.operation for request in self.store.requests][-1] == "list"
        self.stored_anew.append((extent, listing))

    async def listing(self) -> Listing:
        return await self.listed.listings.get(0)

    async def store_anew(self, content: bytes = NEW) -> None:
        """Store the object anew, and have somebody else find that out."""
        put(self.store, 0, "a.dcm", content)
        await self.listed.listings.refresh(0, await self.listing())

    async def get(self) -> bytes:
        body, _ = await self.requests.get(WHOLE)
        return copied(body)

    async def post(self) -> "list[Body | ReadError]":
        """Ask for the instance; the outcome comes into the list."""
        outcomes: list[Body | ReadError] = []
        assert self.requests.post(WHOLE, await self.listing(), outcomes.append)
        return outcomes


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = LeasingStore()
    put(store, 0, "a.dcm", OLD)
    # An arena for nothing else.
    with Arena(1 << 16) as arena:
        store.arena = arena
        async with open_listed(tmp_path, store) as listed:
            yield World(store, listed, arena)
        assert arena.leased == 0


async def test_what_is_asked_for_comes_with_the_listing_that_it_is_of(world: World) -> None:
    body, listing = await world.requests.get(WHOLE._replace(offset=2, length=4))
    assert copied(body) == OLD[2:6]
    assert listing is await world.listing()
    assert (world.listed.metrics.objects_fetched, world.listed.metrics.bytes_fetched) == (1, 4)
    assert not world.stored_anew


async def test_what_is_posted_comes_later_and_once(world: World) -> None:
    world.store.held_back = 1
    outcomes = await world.post()
    await until_true(lambda: world.arena.leased)
    assert not outcomes
    world.store.gate.set()
    await until_true(lambda: outcomes)
    (lease,) = outcomes
    assert isinstance(lease, Lease)
    assert copied(lease) == OLD
    assert (world.listed.metrics.objects_fetched, world.listed.metrics.bytes_fetched) == (1, len(OLD))


async def test_what_is_posted_fails_with_the_error_of_the_store(world: World) -> None:
    world.store.refused[BUCKET] = Unreachable("away")
    outcomes = await world.post()
    await until_true(lambda: outcomes)
    assert [(type(error), str(error)) for error in outcomes] == [(Unreachable, "away")]
    assert world.listed.metrics.objects_fetched == 0


async def test_bytes_that_were_posted_for_and_come_after_a_new_version_was_listed_are_let_go_of(world: World) -> None:
    world.store.held_back = 1
    outcomes = await world.post()
    await until_true(lambda: world.arena.leased)
    await world.store_anew()
    world.store.gate.set()
    await until_true(lambda: outcomes)
    assert [type(outcome) for outcome in outcomes] == [ObjectChanged]
    assert world.arena.leased == 0


async def test_old_bytes_that_come_after_a_new_version_was_listed_are_let_go_of_and_the_new_ones_asked_for(
    world: World,
) -> None:
    world.store.held_back = 1
    found: list[bytes] = []

    async def get() -> None:
        found.append(await world.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await until_true(lambda: world.arena.leased)
        await world.store_anew()
        world.store.gate.set()
    assert found == [NEW]
    assert world.arena.leased == 0
    assert not world.stored_anew, "for whoever has found it out"


async def test_an_object_that_was_stored_anew_is_listed_again_and_its_old_bytes_forgotten_first(world: World) -> None:
    before = await world.listing()
    put(world.store, 0, "a.dcm", NEW)
    body, listing = await world.requests.get(WHOLE)
    assert copied(body) == NEW
    assert world.stored_anew == [(WHOLE, listing)]
    assert listing is await world.listing()
    assert not world.requests.is_current(WHOLE, before)
    assert world.requests.is_current(WHOLE, listing)


async def test_a_mirror_that_refuses_what_it_lists_is_not_trusted(world: World) -> None:
    await world.listing()
    world.store.refused[BUCKET] = ObjectChanged("412")
    with pytest.raises(Untrusted, match="refuses what it lists"):
        await world.get()
    assert not world.stored_anew


@pytest.mark.parametrize("error", [NotFound("gone"), AccessDenied("no")])
async def test_an_object_that_has_moved_is_found_behind_buckets_that_refuse_it(world: World, error: ReadError) -> None:
    await world.listing()
    content = world.store.objects[BUCKET].popitem()
    siblings = [bucket for bucket in world.listed.mirror.candidates(BUCKET) if bucket != BUCKET]
    world.store.objects[siblings[-1]] = dict([content])
    for bucket in siblings[:-1]:
        world.store.refused[bucket] = error
    assert await world.get() == OLD
    world.store.objects[siblings[-1]].clear()
    with pytest.raises(NotFound, match=r"a\.dcm of series .* is gone from every bucket"):
        await world.get()


async def test_the_bucket_that_was_listed_may_not_refuse_its_objects(world: World) -> None:
    await world.listing()
    world.store.refused[BUCKET] = AccessDenied("no")
    with pytest.raises(AccessDenied):
        await world.get()
