"""A trace of reads in, fetches out."""

import itertools
import random
from collections.abc import Iterable, Sequence

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from idcfs.reading.policy import (
    BLOCK,
    FIRST_FILES,
    FIRST_WHOLES,
    GROWTH,
    HEAD,
    LARGE_FILE_START,
    LISTINGS_AHEAD,
    MOST_BYTES,
    MOST_FILES,
    NEXT_SERIES_BYTES,
    RUN_BLOCKS,
    SMALL_OBJECT,
    WALKED_OBJECT,
    Extent,
    ListingOf,
    ReadAhead,
    blocks,
)

SLICE = 526_000
PIECE = 32 << 10
"""What the kernel asks for at a time."""

sizes_of_objects = st.integers(0, 3 * SMALL_OBJECT) | st.sampled_from(
    [1, HEAD, HEAD + 1, SMALL_OBJECT, SMALL_OBJECT + 1, SMALL_OBJECT + BLOCK]
)
sizes_of_files = st.integers(1, SMALL_OBJECT) | st.sampled_from([HEAD - 1, HEAD, HEAD + 1, SMALL_OBJECT])


class Tree:
    """Series that follow each other by number; those in *unlisted* have no sizes until they are listed."""

    def __init__(self, series: Sequence[Sequence[int]], unlisted: Iterable[int] = ()) -> None:
        self.series = series
        self.unlisted = set(unlisted)

    def sizes(self, series: int) -> Sequence[int] | None:
        return None if series in self.unlisted else self.series[series]

    def next_series(self, series: int) -> int | None:
        return series + 1 if series + 1 < len(self.series) else None


class Watched:
    """A policy over a tree, and everything that it has asked for."""

    def __init__(self, *series: Sequence[int], unlisted: Iterable[int] = ()) -> None:
        self.tree = Tree(series, unlisted)
        self.policy = ReadAhead(self.tree)
        self.answers = True
        self.extents: list[Extent] = []
        self.seen: set[Extent] = set()
        self.listings: list[int] = []
        self.read_bytes = 0

    def read(self, series: int, instance: int, start: int, stop: int) -> list[Extent]:
        """Read, list what is to be listed, and return the extents that are wanted."""
        wanted = self.policy.read(series, instance, start, stop)
        self.read_bytes += stop - start
        found = [ahead for ahead in wanted if isinstance(ahead, Extent)]
        for ahead in wanted:
            if isinstance(ahead, ListingOf):
                self.listings.append(ahead.series)
                if self.answers:
                    self.tree.unlisted.discard(ahead.series)
        for extent in found:
            size = self.tree.series[extent.series][extent.instance]
            assert extent.length > 0
            assert 0 <= extent.offset < extent.offset + extent.length <= size, "nothing beyond the end"
            assert extent.offset % BLOCK == 0
        self.extents += found
        self.seen |= set(found)
        return found

    def read_whole(self, series: int, instance: int) -> list[Extent]:
        size = self.tree.series[series][instance]
        found: list[Extent] = []
        # In eight pieces at most, as more show nothing else.
        length = max(PIECE, -(-size // 8))
        for start in range(0, size, length):
            found += self.read(series, instance, start, min(size, start + length))
        return found

    def total(self) -> int:
        return sum(extent.length for extent in self.extents)


def blocks_of(fetched: Iterable[Extent]) -> list[int]:
    """The blocks in extents of a large object, in order."""
    return [
        block
        for extent in fetched
        for block in range(extent.offset // BLOCK, -(-(extent.offset + extent.length) // BLOCK))
    ]


@given(sizes_of_objects)
def test_blocks_tile_an_object(size: int) -> None:
    assume(size)
    at = 0
    for block in blocks(Extent(5, 6, 0, size), size):
        assert block[:3] == (5, 6, at)
        assert 0 < block.length <= (SMALL_OBJECT if size <= SMALL_OBJECT else BLOCK)
        at += block.length
    assert at == size


@given(sizes_of_objects, st.data())
def test_the_blocks_of_a_range_are_those_that_it_touches(size: int, data: st.DataObject) -> None:
    assume(size)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    every = blocks(Extent(5, 6, 0, size), size)
    touched = [block for block in every if block.offset < stop and block.offset + block.length > start]
    assert blocks(Extent(5, 6, start, stop - start), size) == touched


@settings(deadline=None)
@given(st.lists(st.lists(sizes_of_files, min_size=1, max_size=60), min_size=1, max_size=5), st.booleans())
def test_a_reader_of_everything_finds_each_file_but_a_few_fetched_once_and_before_it_comes(
    series: list[list[int]], listed: bool
) -> None:
    watched = Watched(*series, unlisted=() if listed else range(1, len(series)))
    late = 0
    for number, sizes in enumerate(series):
        for instance, size in enumerate(sizes):
            watched.tree.unlisted.discard(number)
            late += Extent(number, instance, 0, size) not in watched.seen
            watched.read_whole(number, instance)
    assert len(watched.seen) == len(watched.extents)
    assert len(set(watched.listings)) == len(watched.listings)
    # The first, the first of a series that was not listed or is beyond what may be fetched in vain, and what
    # follows a file that is no larger than a head.
    if all(size > HEAD for sizes in series for size in sizes):
        assert late <= 1 + sum(1 for sizes in series[1:] if not listed or sizes[0] > NEXT_SERIES_BYTES // 2)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 2000))
def test_each_file_of_a_sequential_reader_is_fetched_exactly_once(files: int) -> None:
    watched = Watched([SLICE] * files)
    for instance in range(files):
        assert instance == 0 or Extent(0, instance, 0, SLICE) in watched.seen
        watched.read_whole(0, instance)
    assert watched.extents == [Extent(0, instance, 0, SLICE) for instance in range(1, files)]


@given(
    st.lists(st.lists(sizes_of_files, min_size=1, max_size=40), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 39), st.integers(1, SMALL_OBJECT)), max_size=60),
)
def test_whatever_is_read_what_is_ahead_is_bounded_and_nothing_is_behind(
    series: list[list[int]], reads: list[tuple[int, int, int]]
) -> None:
    watched = Watched(*series)
    for number, instance, stop in reads:
        number %= len(series)
        instance %= len(series[number])
        stop = min(stop, series[number][instance])
        found = watched.read(number, instance, 0, stop)
        assert len(found) <= MOST_FILES
        assert len(set(found)) == len(found)
        places = [(extent.series, extent.instance, extent.offset) for extent in found]
        assert all(place >= (number, instance, stop) for place in places), "nothing behind the reader"
        assert sum(extent.length for extent in found[:-1]) < MOST_BYTES


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(2, 400))
def test_bytes_ahead_of_a_walk_are_bounded(megabytes: int, files: int) -> None:
    size = megabytes << 20
    watched = Watched([size] * files)
    for instance in range(files):
        watched.read_whole(0, instance)
        ahead = [extent for extent in watched.extents[instance:] if extent.instance > instance]
        assert sum(extent.length for extent in ahead) < MOST_BYTES + size
        assert len(ahead) <= MOST_FILES


def test_the_window_grows_to_its_bound() -> None:
    watched = Watched([1000] * 1000)
    ahead = []
    for instance in range(5):
        watched.read_whole(0, instance)
        ahead.append(len(watched.extents) - instance)
    assert ahead == [FIRST_WHOLES, 256, 256, 256, 256]


def test_the_window_of_a_header_scan_begins_small() -> None:
    watched = Watched([SLICE] * 1000)
    assert len(watched.read(0, 0, 0, HEAD)) == FIRST_FILES


@given(st.integers(1, SMALL_OBJECT))
def test_who_looks_at_the_first_file_of_each_series_has_little_fetched_in_vain(size: int) -> None:
    # So that nothing of a next series is wanted.
    watched = Watched(*([size] * 100 for _ in range(41)))
    for series in range(0, 41, 2):
        watched.read_whole(series, 0)
    fetched = [extent for extent in watched.extents if extent.series % 2 == 0]
    assert len(fetched) <= FIRST_WHOLES + FIRST_WHOLES // GROWTH + 20 * FIRST_FILES


def test_the_first_window_grows_again_after_a_walk_that_went_on() -> None:
    watched = Watched(*([SLICE] * 100 for _ in range(9)))
    for series in (0, 2, 4):
        watched.read_whole(series, 0)
    for instance in range(3):
        watched.read_whole(4, instance)
    watched.read_whole(6, 0)
    fetched = [extent for extent in watched.extents if extent.series == 6]
    assert len(fetched) == FIRST_FILES * GROWTH


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 1000), st.integers(1, HEAD))
def test_a_header_scan_takes_heads(files: int, stop: int) -> None:
    watched = Watched([SLICE] * files)
    for instance in range(files):
        watched.read(0, instance, 0, stop)
        assert watched.policy.wants_head(0, instance, stop) is (instance > 0)
        assert not watched.policy.wants_head(0, instance, HEAD + 1)
    wholes = [extent for extent in watched.extents if extent.length == SLICE]
    assert len(wholes) <= 2, "before it is known for a header scan"
    assert all(extent.length == HEAD for extent in watched.extents[len(wholes) :])
    assert [extent.instance for extent in watched.extents] == list(range(1, files))


def test_a_header_scan_of_a_series_takes_at_most_a_quarter_of_its_bytes() -> None:
    watched = Watched([SLICE] * 304)
    for instance in range(304):
        watched.read(0, instance, 0, 16 << 10)
    assert SLICE + watched.total() <= 0.25 * 304 * SLICE


def test_files_no_larger_than_a_head_are_taken_whole() -> None:
    watched = Watched([36_000] * 2000)
    for instance in range(2000):
        watched.read(0, instance, 0, 4096)
    assert watched.extents == [Extent(0, instance, 0, 36_000) for instance in range(1, 2000)]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 100))
def test_a_header_scan_that_reads_on_takes_wholes(scanned: int) -> None:
    watched = Watched([SLICE] * 304)
    for instance in range(scanned + 1):
        watched.read(0, instance, 0, PIECE)
    found = watched.read(0, scanned, PIECE, HEAD + PIECE)
    assert found[:2] == [Extent(0, scanned + ahead, 0, SLICE) for ahead in (1, 2)]
    assert not watched.policy.wants_head(0, scanned, PIECE)
    for instance in range(scanned + 1, 304):
        assert Extent(0, instance, 0, SLICE) in watched.seen
        watched.read_whole(0, instance)
    # Those that were taken whole before it looked like a scan may be asked for again.
    assert len(watched.extents) <= len(watched.seen) + 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=8), sizes_of_files, st.booleans())
def test_bytes_of_a_series_not_begun_are_bounded_by_what_was_read(files: list[int], size: int, whole: bool) -> None:
    watched = Watched(*([size] * count for count in files))

    def read(number: int, instance: int) -> list[Extent]:
        if whole:
            return watched.read_whole(number, instance)
        return watched.read(number, instance, 0, min(size, PIECE))

    for number, count in enumerate(files):
        beyond = 0
        for instance in range(count):
            found = read(number, instance)
            beyond += sum(extent.length for extent in found if extent.series > number)
            assert beyond <= 0.05 * watched.read_bytes + (1 << 20)


def test_a_tile_of_a_slide_does_not_count_as_all_of_it() -> None:
    watched = Watched([300 << 20, 1000], [SLICE] * 100)
    watched.read(0, 0, 299 << 20, (299 << 20) + 1000)
    watched.read(0, 1, 0, 1000)
    assert sum(extent.length for extent in watched.extents if extent.series) <= NEXT_SERIES_BYTES + 1000


def test_series_are_listed_ahead_of_a_walk_of_single_files() -> None:
    watched = Watched(*([20_000] for _ in range(40)), unlisted=range(1, 40))
    for series in range(40):
        watched.read_whole(series, 0)
        # The first may well be all that is read.
        assert max(watched.listings) == min(39, series + 1 if series == 0 else max(watched.listings))
        assert watched.listings[-1] <= series + LISTINGS_AHEAD + len(watched.listings)
        assert all(number in watched.listings for number in range(1, min(40, series + 2)))
    assert watched.listings == list(range(1, 40))
    assert [extent.series for extent in watched.extents] == sorted({extent.series for extent in watched.extents})
    assert len(watched.extents) >= 37


def test_only_the_next_series_is_listed_ahead_of_the_first() -> None:
    watched = Watched([SLICE] * 3, [SLICE], [SLICE], unlisted=(1, 2))
    watched.answers = False
    for instance in range(3):
        watched.read_whole(0, instance)
    assert watched.listings == [1]


def test_the_files_of_the_next_series_come_before_its_reader() -> None:
    watched = Watched([SLICE] * 200, [SLICE] * 200, unlisted=(1,))
    for instance in range(200):
        watched.read_whole(0, instance)
    assert watched.listings == [1]
    ahead = [extent for extent in watched.extents if extent.series == 1]
    assert 5 <= len(ahead) <= 10
    watched.read_whole(1, 0)
    assert len([extent for extent in watched.extents if extent.series == 1]) > 60


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(0, PIECE))
def test_a_reader_of_a_large_file_finds_each_block_fetched_once(blocks: int, less: int) -> None:
    size = SMALL_OBJECT + blocks * BLOCK - less
    watched = Watched([size])
    fetched: set[int] = set()
    for start in range(0, size, PIECE):
        block = start // BLOCK
        # The first window opens when the second block is read.
        assert block <= 1 or block in fetched
        found = watched.read(0, 0, start, min(size, start + PIECE))
        new = blocks_of(found)
        assert not fetched & set(new)
        assert all(other > block for other in new)
        assert all(extent.length <= RUN_BLOCKS * BLOCK for extent in found)
        fetched |= set(new)
        ahead = sum(min(size, (other + 1) * BLOCK) - other * BLOCK for other in fetched if other > block)
        assert ahead <= MOST_BYTES + RUN_BLOCKS * BLOCK
    assert fetched == set(range(2, -(-size // BLOCK)))
    # Few requests: all but those of the first windows are for many blocks.
    assert len(watched.extents) <= 4 + (blocks + 32) / RUN_BLOCKS * 2


@given(st.integers(2, 200), st.integers(0, BLOCK - 1))
def test_steps_of_one_length_are_followed(step: int, offset: int) -> None:
    size = 2000 * step * BLOCK
    watched = Watched([1, size])
    fetched: set[int] = set()
    for turn in range(40):
        at = 7 * BLOCK + turn * step * BLOCK + offset
        block = at // BLOCK
        # The first step is seen at the second read, and known for one at the third.
        assert turn < 3 or block in fetched
        found = watched.read(0, 1, at, at + 1)
        assert all(extent.length <= 2 * BLOCK for extent in found)
        assert all(extent.offset // BLOCK > block for extent in found)
        new = blocks_of(found)
        assert len(new) == len(set(new))
        assert step == 2 or not fetched & set(new)
        fetched |= set(new)
        assert sum(other > block for other in fetched) * BLOCK <= MOST_BYTES + 2 * BLOCK
    assert len(fetched) > 40


@settings(deadline=None)
@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=80), st.randoms(use_true_random=False))
def test_random_reading_fetches_nothing(reads: list[int], source: random.Random) -> None:
    watched = Watched([SLICE] * 20_001)
    slide = Watched([20_001 * BLOCK])
    # Neighbours, and equal steps, are patterns.
    reads = [2 * at for at in reads]
    steps = [after - before for before, after in itertools.pairwise(reads)]
    assume(all(one != other for one, other in itertools.pairwise(steps)))
    for at in reads:
        assert not watched.read(0, at, 0, 4096)
        assert not slide.read(0, 0, at * BLOCK, at * BLOCK + source.randrange(1, BLOCK))
    assert not watched.listings


def test_a_large_file_has_its_start_fetched_before_its_walk_comes() -> None:
    watched = Watched([1000, 1000, 100 << 20])
    watched.read_whole(0, 0)
    watched.read_whole(0, 1)
    assert watched.extents[-1] == Extent(0, 2, 0, LARGE_FILE_START * BLOCK)


def test_a_file_that_is_not_too_large_is_fetched_whole_before_its_walk_comes() -> None:
    watched = Watched([1000, 1000, WALKED_OBJECT, WALKED_OBJECT + 1])
    watched.read_whole(0, 0)
    watched.read_whole(0, 1)
    assert Extent(0, 2, 0, WALKED_OBJECT) in watched.extents
    assert Extent(0, 3, 0, LARGE_FILE_START * BLOCK) in watched.extents


def test_a_first_read_beyond_a_head_opens_a_wider_window() -> None:
    heads, wholes = Watched([SLICE] * 100), Watched([SLICE] * 100)
    assert len(heads.read(0, 0, 0, HEAD)) == FIRST_FILES
    assert len(wholes.read(0, 0, 0, 2 * HEAD)) == FIRST_WHOLES


@given(st.lists(st.integers(0, 3), max_size=300), st.integers(0, 1 << 30))
def test_looking_at_the_end_and_back_does_not_end_a_stream(looks: list[int], seed: int) -> None:
    size = 1000 * BLOCK
    straight, looking = Watched([size]), Watched([size])
    random.Random(seed).shuffle(looks)
    for block in range(900):
        straight.read(0, 0, block * BLOCK, block * BLOCK + 1)
        looking.read(0, 0, block * BLOCK, block * BLOCK + 1)
        if block and block < len(looks) and not looks[block]:
            assert looking.read(0, 0, size - 8192, size) == []
            looking.read(0, 0, block * BLOCK, block * BLOCK + 1)
    assert looking.extents == straight.extents


@given(st.lists(st.integers(1, 12), min_size=20, max_size=60))
def test_a_stream_is_followed_through_what_the_kernel_has_already(steps: list[int]) -> None:
    """Its reader asks only now and then, and never for a block that was not fetched once the window is open."""
    size = 1000 * BLOCK
    watched = Watched([size])
    for block in range(12):
        watched.read(0, 0, block * BLOCK, block * BLOCK + 1)
    at = 11
    for step in steps:
        at += step
        assert at in blocks_of(watched.extents)
        watched.read(0, 0, at * BLOCK, at * BLOCK + 1)
    fetched = blocks_of(watched.extents)
    assert len(fetched) == len(set(fetched))


def open_all(watched: Watched, series: int, instances: Iterable[int], witnesses: int, whole: bool) -> list[int]:
    """Open files that the kernel has, one in *witnesses* of which shows that it is read whole; bytes then wanted."""
    wanted = []
    for instance in instances:
        is_observed = instance % witnesses == 0
        found = [ahead for ahead in watched.policy.open(series, instance, is_observed) if isinstance(ahead, Extent)]
        if is_observed and whole:
            size = watched.tree.series[series][instance]
            read = watched.policy.read(series, instance, size - 4096, size)
            found += [ahead for ahead in read if isinstance(ahead, Extent)]
        wanted += [extent.length for extent in found]
    return wanted


@given(st.integers(2, 8))
def test_files_that_the_kernel_has_are_walked_through_whole(witnesses: int) -> None:
    watched = Watched([SLICE] * 400)
    watched.read_whole(0, 0)
    wanted = open_all(watched, 0, range(1, 300), witnesses, whole=True)
    assert len(wanted) + FIRST_WHOLES > 300
    assert set(wanted) == {SLICE}


@given(st.integers(2, 8), st.integers(2, 20))
def test_who_turns_to_heads_among_files_that_the_kernel_has_is_noticed(witnesses: int, wholes: int) -> None:
    watched = Watched([SLICE] * 1000)
    for instance in range(wholes):
        watched.read_whole(0, instance)
    wanted = open_all(watched, 0, range(wholes, wholes + witnesses + 2), witnesses, whole=False)
    later = open_all(watched, 0, range(wholes + witnesses + 2, 900), witnesses, whole=False)
    assert sum(length == SLICE for length in wanted) <= MOST_FILES
    assert set(later) <= {HEAD}


def test_what_is_opened_where_no_walk_is_fetches_nothing() -> None:
    watched = Watched([SLICE] * 9)
    assert watched.policy.open(0, 3, True) == []


def test_a_second_pass_from_the_front_is_a_walk_again() -> None:
    watched = Watched([SLICE] * 100)
    for instance in range(100):
        watched.read_whole(0, instance)
    watched.extents.clear()
    watched.seen.clear()
    for instance in range(100):
        watched.read_whole(0, instance)
    assert len(watched.seen) == len(watched.extents)
    assert {extent.instance for extent in watched.extents} >= set(range(2, 100))


def test_a_jump_ends_the_window_and_reading_on_opens_a_new_one() -> None:
    watched = Watched([SLICE] * 1000)
    for instance in range(6):
        watched.read_whole(0, instance)
    assert not watched.read_whole(0, 700)
    assert [extent.instance for extent in watched.read_whole(0, 701)] == [702, 703]


def test_readers_of_neighbouring_series_do_not_take_each_others_walks() -> None:
    watched = Watched(*([SLICE] * 100 for _ in range(4)))
    for instance in range(100):
        for series in range(4):
            if instance > 3:
                assert Extent(series, instance, 0, SLICE) in watched.seen
            watched.read_whole(series, instance)
    assert len(watched.seen) == len(watched.extents)


def test_what_is_not_listed_is_not_fetched() -> None:
    watched = Watched([SLICE] * 10, unlisted=[0])
    assert not watched.read(0, 0, 0, 1000)
    assert not watched.policy.wants_head(0, 0, 1000)


def test_files_without_a_byte_are_passed_over() -> None:
    watched = Watched([10, 0, 0, 20, 0], [], [30])
    for instance in (0, 3):
        watched.read_whole(0, instance)
    assert watched.extents == [Extent(0, 3, 0, 20), Extent(2, 0, 0, 30)]


def test_what_is_remembered_is_bounded() -> None:
    watched = Watched(*([SMALL_OBJECT + BLOCK, 10] for _ in range(10_000)))
    for series in range(10_000):
        watched.read(series, 0, 0, 10)
        watched.read(series, 1, 0, 10)
        walk = watched.policy._walks[series]
        assert len(walk.series) + len(walk.listed) + len(walk.pending) < 2000
    assert len(watched.policy._walks) <= 256
    assert len(watched.policy._streams) <= 256
