"""What the kernel was given ahead of readers: who is observed, and what is let go of in memory."""

from array import array
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest
import trio

from idcfs.inode import pack_file
from idcfs.pages.client import PAGE, PageCache
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.reading.filled import OBSERVED_EVERY, FilledFiles
from idcfs.reading.listings import Listing
from idcfs.reading.policy import BLOCK, HEAD, SMALL_OBJECT, Extent

SIZE = 3 * HEAD
SERIES = 7
"""A series of small files of `SIZE` bytes; the last file is a large one."""

FILES = 20
LARGE = FILES - 1
LARGE_SIZE = SMALL_OBJECT + 8 * BLOCK


class Filled(NamedTuple):
    """What the kernel is to be given; `taken` has to be called when it has taken it."""

    inode: int
    offset: int
    length: int
    all_but_last: bool
    taken: Callable[[], None]


class Kernel(PageCache):
    """The kernel's side of a page cache, which takes what it is given when the test lets it."""

    def __init__(self, arena: Arena, nursery: trio.Nursery) -> None:
        super().__init__(arena, nursery)
        self.given: list[Filled] = []

    def fill(self, inode: int, offset: int, lease: Lease, all_but_last: bool, filled: Callable[[], None]) -> None:
        lease.hold()

        def taken() -> None:
            filled()
            lease.release()

        self.given.append(Filled(inode, offset, len(lease), all_but_last, taken))


class World:
    """Files that are filled, as the fetcher has them."""

    def __init__(self, arena: Arena, nursery: trio.Nursery) -> None:
        self.arena = arena
        self.kernel = Kernel(arena, nursery)
        self.files = FilledFiles(self.kernel, arena)
        sizes = memoryview(array("Q", [SIZE] * LARGE + [LARGE_SIZE]))
        none = memoryview(array("q", [0] * FILES))
        self.listing = Listing("bucket", [b""] * FILES, sizes, none, [b""] * FILES)  # type: ignore[arg-type]  # not read

    def land(self, *extents: Extent) -> list[Filled]:
        """Extents that stand together have come ahead of readers; returns what the kernel is given of them."""
        before = len(self.kernel.given)
        start = extents[0].offset
        run = self.arena.take_now(sum(extent.length for extent in extents))
        assert run is not None
        with run:
            for extent in extents:
                with run.part(extent.offset - start, extent.offset - start + extent.length) as lease:
                    lease.view[:] = bytes([extent.offset // BLOCK + 1]) * extent.length
                    self.arena.kept.add(extent, lease)
                    self.files.fill(extent, self.listing, lease)
        return self.kernel.given[before:]


def whole(instance: int) -> Extent:
    return Extent(SERIES, instance, 0, SIZE)


def block(number: int) -> Extent:
    return Extent(SERIES, LARGE, number * BLOCK, BLOCK)


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    with Arena(16 << 20) as arena:
        yield World(arena, nursery)


async def test_every_fourth_file_lacks_its_last_page_so_that_it_is_observed(world: World) -> None:
    for instance in range(12):
        assert world.files.is_observed(SERIES, instance) is None
        (given,) = world.land(whole(instance))
        is_observed = instance % OBSERVED_EVERY == 0
        assert given[:4] == (pack_file(SERIES, instance), 0, SIZE, is_observed)
        assert not world.files.has(SERIES, instance), "the kernel has not taken it yet"
        given.taken()
        assert world.files.has(SERIES, instance)
        assert world.files.is_observed(SERIES, instance) is is_observed
        # It need not be in memory, unless its last page is asked for.
        assert (whole(instance) in world.arena.kept) is is_observed
        assert not world.files.has(SERIES + 1, instance)


async def test_a_file_that_the_kernel_does_not_take_stays_in_memory(world: World) -> None:
    world.land(whole(1))
    assert not world.files.has(SERIES, 1)
    assert world.files.is_observed(SERIES, 1) is None
    assert whole(1) in world.arena.kept


async def test_a_head_is_not_handed_on(world: World) -> None:
    assert world.land(whole(1)._replace(length=HEAD)) == []
    assert whole(1)._replace(length=HEAD) in world.arena.kept


async def test_of_a_run_of_blocks_that_the_kernel_has_only_the_observed_one_takes_memory(world: World) -> None:
    given = world.land(*map(block, range(4, 8)))
    assert [each[:4] for each in given] == [
        (pack_file(SERIES, LARGE), number * BLOCK, BLOCK, number == 4) for number in range(4, 8)
    ]
    for each in given:
        each.taken()
    assert [block(number) in world.arena.kept for number in range(4, 8)] == [True, False, False, False]
    assert world.arena.leased == BLOCK
    kept = world.arena.kept.get(block(4))
    assert kept is not None
    with kept:
        assert bytes(kept.view) == bytes([5]) * BLOCK
    assert not world.files.has(SERIES, LARGE), "only some of it"
    assert world.files.is_observed(SERIES, LARGE) is None


async def test_an_observed_block_that_was_let_go_of_meanwhile_is_not_kept(world: World) -> None:
    (given,) = world.land(block(4))
    world.arena.kept.forget(block(4))
    given.taken()
    assert block(4) not in world.arena.kept
    assert world.arena.leased == 0


async def test_without_memory_for_an_observed_block_by_itself_it_is_let_go_of(world: World) -> None:
    given = world.land(*map(block, range(4, 8)))
    rest = world.arena.take_now(world.arena.reserve - world.arena.leased)
    assert rest is not None
    for each in given:
        each.taken()
    assert block(4) not in world.arena.kept
    assert world.arena.leased == len(rest), "the run is free"
    rest.release()


async def test_whoever_reads_what_the_kernel_was_given_has_seen_it_thrown_out(world: World) -> None:
    for instance in range(3):
        (given,) = world.land(whole(instance))
        given.taken()
    # The last page of an observed file, and what the kernel asks for with it.
    world.files.note_read(SERIES, 0, SIZE - 2 * PAGE, SIZE)
    world.files.note_read(SERIES, 0, SIZE - PAGE, SIZE)
    # A file that the kernel was not given.
    world.files.note_read(SERIES, 9, 0, SIZE)
    assert all(world.files.has(SERIES, instance) for instance in range(3))
    world.files.note_read(SERIES, 1, 0, SIZE)
    assert not any(world.files.has(SERIES, instance) for instance in range(3)), "others probably, too"


async def test_no_more_than_a_bound_of_files_is_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idcfs.reading.filled._FILES_REMEMBERED", 2)
    world.files = FilledFiles(world.kernel, world.arena)
    for instance in range(3):
        (given,) = world.land(whole(instance))
        given.taken()
    assert [world.files.has(SERIES, instance) for instance in range(3)] == [False, True, True]
