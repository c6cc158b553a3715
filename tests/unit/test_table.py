import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idcfs.catalog import check
from idcfs.catalog.table import BATCH_ROWS, BatchCache, Strings, Table, TableWriter, column_of
from idcfs.catalog.view import LAST_SCHEMA
from idcfs.errors import CatalogueDamaged
from idcfs.layout import MAX_COMPONENT_BYTES

SCHEMA = pa.schema([("name", pa.binary()), ("small", pa.uint8()), ("count", pa.uint32()), ("bytes", pa.uint64())])

in_one_folder = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def row(number: int) -> tuple[bytes, int, int, int]:
    return b"n%d" % number * (number % 5), number % 251, number, number << 40


def write(path: Path, *sizes: int) -> int:
    """Write a table of the rows of `row`, appended in pieces of *sizes*; returns its length."""
    total = 0
    with TableWriter(path, SCHEMA) as writer:
        for size in sizes:
            columns = list(zip(*map(row, range(total, total + size)), strict=True)) or [()] * 4
            writer.append([pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)])
            total += size
        assert writer.rows == total
    return total


def rows(table: Table) -> list[tuple[bytes, int, int, int]]:
    return list(zip(*(table.values(column, 0, len(table)) for column in range(4)), strict=True))


border = st.sampled_from([0, 1, BATCH_ROWS - 1, BATCH_ROWS, BATCH_ROWS + 1, 2 * BATCH_ROWS])


@in_one_folder
@given(st.lists(border | st.integers(0, 300), max_size=4), st.data())
def test_values_are_read_as_they_were_written(tmp_path: Path, sizes: list[int], data: st.DataObject) -> None:
    total = write(tmp_path / "table", *sizes)
    table = Table(tmp_path / "table", BatchCache(1 << 20))
    assert len(table) == total
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(0, total) | st.just(start))
    expected = [row(number) for number in range(start, stop)]
    for column in range(4):
        assert table.values(column, start, stop) == [values[column] for values in expected]
    if expected:
        assert tuple(table.value(column, start) for column in range(4)) == expected[0]
    table.close()


def test_a_table_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "table"
    with TableWriter(path, SCHEMA):
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), TableWriter(tmp_path / "other", SCHEMA):
        _ = 1 // 0
    assert [found.name for found in tmp_path.iterdir()] == ["table"]


def test_memory_is_bounded_and_the_batches_in_use_stay(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write(path, 6 * BATCH_ROWS)
    one = BatchCache(1 << 30)
    Table(path, one).value(0, 5 * BATCH_ROWS)
    limit = int(one.currsize * 5 / 2)
    cache = BatchCache(limit)
    table = Table(path, cache)
    for number in (0, 1, 2, 3, 4, 0, 5):
        table.value(2, number * BATCH_ROWS)
        assert 0 < cache.currsize <= limit
    table.value(2, 0)
    table.value(2, 3 * BATCH_ROWS)
    path.write_bytes(b"")
    assert table.value(2, 0) == 0, "a batch that was used lately"
    assert table.value(2, 3 * BATCH_ROWS) == 3 * BATCH_ROWS, "the batch that was used last"
    with pytest.raises(CatalogueDamaged):
        table.value(2, 5 * BATCH_ROWS)


def test_tables_that_share_a_cache_do_not_mix_batches(tmp_path: Path) -> None:
    write(tmp_path / "one", 10)
    write(tmp_path / "other", 20)
    cache = BatchCache(1 << 20)
    one, other = Table(tmp_path / "one", cache), Table(tmp_path / "other", cache)
    assert len(rows(one)) == 10
    assert rows(other) == [row(number) for number in range(20)]


def is_found_damaged(path: Path, expected: list[tuple[bytes, int, int, int]]) -> bool:
    """Return whether the damage of a file is found; any value that can be read must be right."""
    try:
        found = rows(Table(path, BatchCache(1 << 20)))
    except CatalogueDamaged:
        return True
    assert found == expected[: len(found)]
    # A file with fewer rows may be a valid table; a view checks the number of rows.
    return len(found) != len(expected)


def test_a_flipped_bit_never_changes_a_value(tmp_path: Path) -> None:
    path = tmp_path / "table"
    total = write(path, BATCH_ROWS + 40)
    expected = [row(number) for number in range(total)]
    whole = path.read_bytes()
    ends = [*range(1200), *range(len(whole) - 2200, len(whole))]
    chosen = random.Random(7)
    found = 0
    for at in chosen.sample(ends, 500) + chosen.sample(range(len(whole)), 100):
        changed = bytearray(whole)
        changed[at] ^= 1 << chosen.randrange(8)
        path.write_bytes(changed)
        found += is_found_damaged(path, expected)
    assert found > 150


def test_a_flipped_bit_in_the_values_is_always_found(tmp_path: Path) -> None:
    path = tmp_path / "table"
    expected = [row(number) for number in range(write(path, 500))]
    whole = path.read_bytes()
    for number in (40, 250, 499):
        at = whole.index((number << 40).to_bytes(8, "little"))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert is_found_damaged(path, expected)


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "table"
    expected = [row(number) for number in range(write(path, BATCH_ROWS + 40))]
    whole = path.read_bytes()
    for length in [0, 1, 8, 100, *range(0, len(whole), 20_011), len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert is_found_damaged(path, expected), length
    with pytest.raises(CatalogueDamaged):
        Table(tmp_path / "missing", BatchCache(1))


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"x" * 5000)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2000)


@pytest.mark.parametrize("damage", [overwrite, cut])
def test_damage_to_an_open_table_is_found_at_the_next_new_batch(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "table"
    write(path, 3 * BATCH_ROWS)
    table = Table(path, BatchCache(1 << 20))
    assert table.value(2, 2 * BATCH_ROWS) == 2 * BATCH_ROWS
    damage(path)
    assert table.value(2, 2 * BATCH_ROWS) == 2 * BATCH_ROWS
    with pytest.raises(CatalogueDamaged):
        table.value(2, 0)
    with pytest.raises(CatalogueDamaged):
        table.values(0, 0, 3 * BATCH_ROWS)


def test_exchanged_batches_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write(path, 2 * BATCH_ROWS)
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch_with_custom_metadata(number) for number in (1, 0)]
    with pa.ipc.new_file(str(path), SCHEMA) as swapped:
        for batch, metadata in batches:
            swapped.write_batch(batch, custom_metadata=metadata)
    with pytest.raises(CatalogueDamaged):
        Table(path, BatchCache(1 << 20)).value(2, 0)


def test_a_table_of_the_longest_names_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "level.arrow"
    names = [b"n" * MAX_COMPONENT_BYTES] * BATCH_ROWS
    with TableWriter(path, LAST_SCHEMA) as writer:
        writer.append([pa.array(names, pa.binary()), pa.array(range(BATCH_ROWS), pa.uint32())])
    assert check.damage(path) is None


@given(st.lists(st.binary(max_size=20), min_size=1))
def test_a_column_of_strings_is_a_sequence(values: list[bytes]) -> None:
    column = column_of(pa.array(values, pa.binary()))
    assert isinstance(column, Strings)
    assert list(column) == values
    assert len(column) == len(values)
    assert column[0 : len(values)] == values
