"""Memory that processes share: regions are disjoint, and free again when the last hold is released."""

import os
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from idcfs.processes.arena import KEPT_PART, Arena
from idcfs.processes.lease import Lease

SIZE = 1 << 13


@pytest.fixture
async def arena() -> AsyncIterator[Arena]:
    with Arena(SIZE) as arena:
        yield arena


def place(lease: Lease) -> range:
    """Where a lease's region is in its arena."""
    return range(lease.start, lease.start + len(lease))


def taken(arena: Arena, length: int) -> Lease:
    """A lease that must be had without waiting."""
    lease = arena.take_now(length)
    assert lease is not None
    return lease


class Region(NamedTuple):
    """A region that was taken, which is full of *mark*."""

    length: int
    mark: int


picks = st.integers(0, 1000)


class Leases(RuleBasedStateMachine):
    """Leases are taken, held, divided, kept and released in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(SIZE)
        self.held: list[tuple[Lease, Region]] = []
        """An item for each hold."""
        self.kept: dict[int, tuple[int, Region]] = {}
        """What was kept under each key: its length, and its region."""
        self.count = 0

    def teardown(self) -> None:
        for lease, _ in self.held:
            lease.release()
        for key in self.kept:
            self.arena.kept.forget(key)
        assert self.arena.leased == 0
        assert self.arena.take_now(SIZE) is not None, "all is one region again"
        self.arena.__exit__(None, None, None)

    @rule(length=st.integers(0, 300) | st.integers(0, SIZE), is_for_network=st.booleans())
    def take(self, length: int, is_for_network: bool) -> None:
        stop = self.arena.reserve if is_for_network else SIZE
        lease = self.arena.take_now(length, stop)
        if lease is None:
            return
        self.count += 1
        region = Region(length, self.count % 256)
        assert len(lease) == length
        assert 0 <= lease.start <= lease.start + length <= stop
        lease.view[:] = bytes([region.mark]) * length
        self.held.append((lease, region))

    @precondition(lambda self: self.held)
    @rule(which=picks)
    def hold(self, which: int) -> None:
        lease, region = self.held[which % len(self.held)]
        self.held.append((lease.hold(), region))

    @precondition(lambda self: self.held)
    @rule(which=picks, start=st.integers(0, SIZE), length=st.integers(0, SIZE))
    def part(self, which: int, start: int, length: int) -> None:
        lease, region = self.held[which % len(self.held)]
        start = min(start, len(lease))
        stop = min(start + length, len(lease))
        part = lease.part(start, stop)
        assert place(part) == place(lease)[start:stop]
        self.held.append((part, region))

    @precondition(lambda self: self.held)
    @rule(which=picks)
    def release(self, which: int) -> None:
        lease, _ = self.held.pop(which % len(self.held))
        lease.release()

    @precondition(lambda self: self.held)
    @rule(which=picks, key=st.integers(0, 5))
    def keep(self, which: int, key: int) -> None:
        lease, region = self.held[which % len(self.held)]
        self.arena.kept.add(key, lease)
        self.kept[key] = len(lease), region

    @rule(key=st.integers(0, 5))
    def get_kept(self, key: int) -> None:
        lease = self.arena.kept.get(key)
        assert (lease is not None) == (key in self.arena.kept)
        if lease is not None:
            self.held.append((lease, self.kept[key][1]))

    @rule(key=st.integers(0, 5))
    def forget_kept(self, key: int) -> None:
        self.arena.kept.forget(key)
        assert key not in self.arena.kept

    @invariant()
    def each_lease_has_its_bytes(self) -> None:
        for lease, region in self.held:
            expected = bytes([region.mark]) * len(lease)
            assert lease.view == expected
            assert os.pread(self.arena.descriptor, len(lease), lease.start) == expected

    @invariant()
    def what_is_leased_is_what_somebody_holds(self) -> None:
        kept = [kept for key, kept in self.kept.items() if key in self.arena.kept]
        assert sum(length for length, _ in kept) <= SIZE * KEPT_PART
        # By identity, because marks repeat after 256 regions.
        regions = {id(region): region for _, region in (*self.held, *kept)}
        assert self.arena.leased == sum(region.length for region in regions.values())


TestLeases = Leases.TestCase


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=20))
async def test_each_lease_keeps_its_bytes(contents: list[bytes]) -> None:
    with Arena(SIZE) as arena:
        leases = []
        for content in contents:
            lease = await arena.take(len(content))
            lease.view[:] = content
            leases.append(lease)
        assert [bytes(lease.view) for lease in leases] == contents


async def test_whoever_maps_the_descriptor_sees_the_bytes_where_they_are(arena: Arena) -> None:
    first, second = await arena.take(100), await arena.take(5)
    first.view[:] = b"x" * 100
    second.view[:] = b"12345"
    assert os.pread(arena.descriptor, 5, second.start) == b"12345"
    assert os.pread(arena.descriptor, 3, second.part(1, 4).start) == b"234"
    assert arena.size == SIZE


async def test_a_region_is_free_when_it_was_released_as_often_as_it_was_held(arena: Arena) -> None:
    lease = await arena.take(SIZE)
    part = lease.hold().part(10, 20)
    part.hold()
    for held in (lease, part, lease, part):
        assert arena.take_now(1) is None
        held.release()
    assert place(await arena.take(SIZE)) == range(SIZE)


async def test_the_end_of_a_block_releases_one_hold_also_after_an_error(arena: Arena) -> None:
    lease = await arena.take(SIZE)
    with lease.hold():
        pass
    assert arena.leased == SIZE
    with pytest.raises(ZeroDivisionError), lease:
        raise ZeroDivisionError
    assert arena.leased == 0


async def test_whoever_releases_too_often_is_stopped_before_another_ones_region_is_free(arena: Arena) -> None:
    lease = await arena.take(10)
    lease.release()
    other = await arena.take(10)
    with pytest.raises(AssertionError):
        lease.release()
    with pytest.raises(AssertionError):
        lease.hold()
    assert arena.leased == len(other)


async def test_whoever_finds_no_room_waits_until_there_is_some(arena: Arena) -> None:
    halves = [await arena.take(SIZE // 2), await arena.take(SIZE // 2)]
    assert arena.take_now(1) is None
    found: list[range] = []

    async def take() -> None:
        found.append(place(await arena.take(SIZE)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        halves.pop().release()
        await trio.testing.wait_all_tasks_blocked()
        assert not found
        halves.pop().release()
    assert found == [range(SIZE)]


async def test_whoever_gives_up_waiting_takes_nothing(arena: Arena) -> None:
    lease = await arena.take(SIZE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(arena.take, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        # Both in one step of the loop.
        lease.release()
    assert arena.leased == 0


async def test_all_who_wait_are_served_one_after_the_other(arena: Arena) -> None:
    lease = await arena.take(SIZE)
    served: list[int] = []

    async def take(number: int) -> None:
        with await arena.take(SIZE - number):
            await trio.testing.wait_all_tasks_blocked()
            served.append(number)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(take, number)
            await trio.testing.wait_all_tasks_blocked()
            lease.release()
    assert sorted(served) == list(range(10))


@pytest.mark.parametrize("when", ["before", "while somebody waits"])
async def test_whoever_finds_no_room_takes_what_is_kept_only_in_case_it_is_useful(arena: Arena, when: str) -> None:
    used, kept = await arena.take(SIZE - 100), await arena.take(100)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            if when == "while somebody waits":
                nursery.start_soon(arena.take, 100)
                await trio.testing.wait_all_tasks_blocked()
            with kept:
                arena.kept.add("kept", kept)
            assert "kept" in arena.kept
            if when == "before":
                nursery.start_soon(arena.take, 100)
    assert "kept" not in arena.kept
    assert arena.leased == SIZE
    used.release()


async def test_what_is_kept_and_in_use_is_not_taken_from_its_user(arena: Arena) -> None:
    with await arena.take(SIZE // 4) as lease:
        arena.kept.add("key", lease)
    rest = await arena.take(SIZE - SIZE // 4)
    used = arena.kept.get("key")
    assert used is not None
    found: list[range] = []

    async def take() -> None:
        found.append(place(await arena.take(SIZE // 4)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert not found
        used.release()
    assert found == [range(SIZE // 4)]
    rest.release()


async def test_the_least_recently_used_is_let_go_of_first(arena: Arena) -> None:
    def keep(key: str) -> None:
        with taken(arena, int(SIZE * KEPT_PART) // 3) as lease:
            arena.kept.add(key, lease)

    for key in "abc":
        keep(key)
    used = arena.kept.get("a")
    assert used is not None
    used.release()
    keep("d")
    assert [key for key in "abcd" if key in arena.kept] == ["a", "c", "d"]
    assert arena.kept.forget_oldest()
    assert [key for key in "abcd" if key in arena.kept] == ["a", "d"]
    assert arena.kept.forget_oldest()
    assert arena.kept.forget_oldest()
    assert not arena.kept.forget_oldest()
    assert arena.leased == 0


async def test_what_is_kept_anew_takes_the_place_of_what_was_kept_under_its_key(arena: Arena) -> None:
    one, other = await arena.take(10), await arena.take(20)
    arena.kept.add("key", one)
    one.release()
    arena.kept.add("key", other)
    other.release()
    assert arena.leased == 20
    # It is let go of and held again in one call.
    held = arena.kept.get("key")
    assert held is not None
    arena.kept.add("key", held)
    held.release()
    assert "key" in arena.kept
    arena.kept.forget("key")
    arena.kept.forget("key")
    assert arena.kept.get("key") is None
    assert arena.leased == 0


async def test_what_is_larger_than_all_that_may_be_kept_is_not_kept(arena: Arena) -> None:
    with await arena.take(int(SIZE * KEPT_PART) + 1) as lease:
        arena.kept.add("key", lease)
        assert "key" not in arena.kept
    assert arena.leased == 0


async def test_what_never_fits_is_refused(arena: Arena) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        await arena.take(SIZE + 1)
    assert arena.take_now(SIZE + 1) is None


async def test_what_is_to_end_before_a_place_leaves_the_rest_to_others(arena: Arena) -> None:
    leases = [await arena.take(300, arena.reserve) for _ in range(arena.reserve // 300)]
    assert arena.take_now(300, arena.reserve) is None
    below = arena.take_now(arena.reserve % 300, arena.reserve)
    rest = taken(arena, SIZE - arena.reserve)
    assert below is not None
    assert arena.take_now(1) is None
    found: list[range] = []

    async def wait() -> None:
        found.append(place(await arena.take(300, arena.reserve)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        rest.release()
        await trio.testing.wait_all_tasks_blocked()
        assert not found, "it is not before that place"
        leases.pop(0).release()
    assert found == [range(300)]
    with pytest.raises(ValueError, match="do not fit"):
        await arena.take(arena.reserve + 1, arena.reserve)


async def test_nothing_is_left_open_at_the_end() -> None:
    with Arena(SIZE) as arena:
        descriptor = arena.descriptor
        lease = await arena.take(5)
        lease.view[:] = b"12345"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert bytes(lease.view) == b"12345", "whoever has bytes keeps them"
    lease.release()


def test_a_lease_that_is_held_longer_than_the_event_loop_runs_harms_nobody() -> None:
    async def run() -> Lease:
        with Arena(SIZE) as arena:
            return await arena.take(5)

    lease = trio.run(run)
    lease.view[:] = b"12345"
    assert bytes(lease.view) == b"12345"
    lease.release()
