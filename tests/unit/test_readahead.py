import itertools

from hypothesis import assume, given
from hypothesis import strategies as st

from idcfs.readahead import BLOCK, BLOCKS_AHEAD, FILES_AHEAD, SMALL_OBJECT, ReadAhead, extent_end, extents

sizes = st.integers(0, 3 * SMALL_OBJECT) | st.sampled_from([1, SMALL_OBJECT, SMALL_OBJECT + 1, SMALL_OBJECT + BLOCK])
LARGE = SMALL_OBJECT + 40 * BLOCK


@given(sizes)
def test_extents_tile_an_object(size: int) -> None:
    assume(size)
    at = 0
    for offset in extents(size, 0, size):
        assert offset == at
        at = extent_end(size, offset)
        assert offset < at
        assert at - offset <= (SMALL_OBJECT if size <= SMALL_OBJECT else BLOCK)
    assert at == size


@given(sizes, st.data())
def test_the_extents_of_a_range_are_those_that_it_touches(size: int, data: st.DataObject) -> None:
    assume(size)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    touched = [at for at in extents(size, 0, size) if at < stop and extent_end(size, at) > start]
    assert list(extents(size, start, stop)) == touched


@given(st.integers(1, 300))
def test_a_reader_of_all_files_finds_each_but_the_first_fetched_once(files: int) -> None:
    policy = ReadAhead()
    fetched: list[int] = []
    for at in range(files):
        assert at == 0 or at in fetched
        fetched += policy.next_files(7, at, files)
    assert fetched == list(range(1, files))


@given(st.integers(1, 300))
def test_a_reader_of_a_large_file_finds_each_block_but_the_first_fetched_once(blocks: int) -> None:
    policy = ReadAhead()
    fetched: list[int] = []
    for block in range(blocks):
        assert block == 0 or block in fetched
        # The kernel asks for a block in pieces.
        for _ in range(8):
            fetched += policy.next_blocks(7, 0, block, blocks * BLOCK - 5)
    assert fetched == list(range(1, blocks))


def test_the_window_doubles_up_to_its_bound() -> None:
    policy = ReadAhead()
    ahead = [policy.next_files(0, at, 1000).stop - 1 - at for at in range(10)]
    assert ahead == [2, 4, 8, 16, 32, 32, 32, 32, 32, 32]
    assert max(ahead) == FILES_AHEAD
    ahead = [policy.next_blocks(0, 0, at, 1000 * BLOCK).stop - 1 - at for at in range(10)]
    assert ahead == [2, 4, 8, 16, 16, 16, 16, 16, 16, 16]
    assert max(ahead) == BLOCKS_AHEAD


@given(st.integers(1, 60), st.lists(st.integers(0, 59), max_size=80))
def test_nothing_beyond_the_end_nor_behind_the_reader_nor_too_far_ahead(files: int, reads: list[int]) -> None:
    policy = ReadAhead()
    for at in reads:
        at %= files
        fetched = policy.next_files(3, at, files)
        assert all(at < file < files and file <= at + FILES_AHEAD for file in fetched)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=80))
def test_random_reading_fetches_nothing(reads: list[int]) -> None:
    policy = ReadAhead()
    # The front is where sequential readers begin, so a reader there counts as one.
    reads = [at + 1 for at in reads]
    assume(all(after != before + 1 for before, after in itertools.pairwise(reads)))
    for at in reads:
        assert not policy.next_files(3, at, 20_000)
        assert not policy.next_blocks(3, 0, at, 20_000 * BLOCK)


def test_a_jump_ends_the_window_and_reading_on_opens_a_new_one() -> None:
    policy = ReadAhead()
    for at in range(6):
        policy.next_files(0, at, 1000)
    assert not policy.next_files(0, 500, 1000)
    assert policy.next_files(0, 501, 1000) == range(502, 504)
    assert not policy.next_files(0, 2, 1000)
    assert policy.next_files(0, 3, 1000) == range(4, 6)


@given(st.lists(st.integers(0, 3)))
def test_readers_of_different_series_do_not_disturb_each_other(turns: list[int]) -> None:
    together = ReadAhead()
    alone = {reader: ReadAhead() for reader in range(4)}
    at = dict.fromkeys(range(4), 0)
    for reader in turns:
        file = at[reader]
        at[reader] += 1
        assert together.next_files(reader, file, 50) == alone[reader].next_files(reader, file, 50)
        assert together.next_blocks(reader, 1, file, LARGE) == alone[reader].next_blocks(reader, 1, file, LARGE)


def test_what_is_remembered_is_bounded() -> None:
    policy = ReadAhead()
    policy.next_files(0, 0, 100)
    for series in range(1, 100_000):
        policy.next_files(series, 0, 100)
        policy.next_blocks(series, 0, 0, LARGE)
    assert len(policy._series) <= 256
    assert len(policy._files) <= 256
