"""Tables on disk: Arrow IPC files read in small batches, each verified by its checksum before it is used.

A batch is read at its first use, copied, verified, and kept in a cache that all tables of a catalogue share and that is
bounded in bytes. Opening a table therefore takes the same time whatever its length, and a file that is damaged or cut
while it is open raises `CatalogueDamaged`, where a memory map would end the process with SIGBUS or return wrong bytes.

Reading is synchronous and takes no lock: one table and its cache belong to one thread.
"""

import errno
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
from cachetools import LRUCache

from idcfs.errors import CacheUnusable, CatalogueDamaged

BATCH_ROWS = 4096
"""Rows in every batch but the last: about 300 kB of names, which take half a millisecond to read and verify."""

_CHECKSUM = "crc32"
_NO_DAMAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES})
"""Errors that say nothing about the file itself, so that building it again would not help."""

# Not of Arrow's own pool, whose first use reserves one of the three gigabytes of address space of a user's query.
_EACH_ROW = pa.array(range(BATCH_ROWS), pa.int32(), memory_pool=pa.system_memory_pool())


class Strings(Sequence[bytes]):
    """A column of byte strings."""

    __slots__ = ("_data", "_offsets")

    def __init__(self, offsets: memoryview, data: bytes) -> None:
        self._offsets = offsets
        self._data = data

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            offsets = self._offsets[at.start : at.stop + 1].tolist()
            data = self._data
            return [data[a:b] for a, b in itertools.pairwise(offsets)]
        return self._data[self._offsets[at] : self._offsets[at + 1]]


Column = Strings | memoryview


class BatchCache(LRUCache[tuple[int, int], tuple[Column, ...]]):
    """The batches used last, up to *maxsize* bytes; a batch that is larger raises ValueError."""

    @staticmethod
    def getsizeof(value: tuple[Column, ...]) -> int:
        """The bytes of a batch."""
        return sum(len(part) for column in value for part in _buffers(column))


class Table:
    """An open Arrow IPC file that `TableWriter` wrote.

    Args:
        path: the file.
        cache: where its batches are kept.

    Raises:
        CatalogueDamaged: the file is not what was written; from every method too.
        CacheUnusable: the file cannot be opened now.
    """

    _serial = 0

    def __init__(self, path: Path, cache: BatchCache) -> None:
        self._path = path
        self._cache = cache
        Table._serial += 1
        self._key = Table._serial
        try:
            self._file = pa.OSFile(str(path))
            self._reader = pa.ipc.open_file(self._file)
            batches = self._reader.num_record_batches
            self._length = 0
            if batches:
                last = self._reader.get_batch(batches - 1)
                self._length = (batches - 1) * BATCH_ROWS + last.num_rows
        except Exception as error:  # Arrow raises errors of many types for a damaged file.
            if isinstance(error, OSError) and error.errno in _NO_DAMAGE:
                raise CacheUnusable(f"{path} cannot be opened: {error.strerror or error}") from error
            raise CatalogueDamaged(f"{path} is not readable: {error}") from error

    def close(self) -> None:
        """Close the file and drop its batches, because those of small tables take more memory than is counted."""
        self._file.close()
        for number in range(-(-self._length // BATCH_ROWS)):
            self._cache.pop((self._key, number), None)

    def __len__(self) -> int:
        return self._length

    def value(self, column: int, row: int) -> Any:
        """Return the value in *column* of *row*: bytes of a string column, an int of a number column."""
        number, at = divmod(row, BATCH_ROWS)
        return self._batch(number)[column][at]

    def values(self, column: int, start: int, stop: int) -> list[Any]:
        """Return the values of *column* from row *start* to *stop* (exclusive)."""
        found: list[Any] = []
        while start < stop:
            number, at = divmod(start, BATCH_ROWS)
            end = min(BATCH_ROWS, at + stop - start)
            part = self._batch(number)[column][at:end]
            found += part if isinstance(part, list) else part.tolist()
            start += end - at
        return found

    def _batch(self, number: int) -> tuple[Column, ...]:
        key = (self._key, number)
        try:
            return self._cache[key]
        except KeyError:
            columns = self._cache[key] = self._read(number)
            return columns

    def _read(self, number: int) -> tuple[Column, ...]:
        try:
            batch, metadata = self._reader.get_batch_with_custom_metadata(number)
            wanted = int(metadata[_CHECKSUM])
            columns = tuple(column_of(array) for array in batch.columns)
        except Exception as error:  # Arrow raises errors of many types for a damaged file.
            raise CatalogueDamaged(f"{self._path}: batch {number} is not readable: {error}") from error
        rows = min(BATCH_ROWS, self._length - number * BATCH_ROWS)
        if batch.num_rows != rows:
            raise CatalogueDamaged(f"{self._path}: batch {number} has {batch.num_rows} rows, not {rows}")
        if checksum(number, columns) != wanted:
            raise CatalogueDamaged(f"{self._path}: batch {number} does not match its checksum")
        return columns


class TableWriter:
    """Writes a table under a temporary name, and renames it when the context ends without an error."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._pending = schema.empty_table()
        self._batches = 0
        self.rows = 0

    def __enter__(self) -> Self:
        self._temporary = self._path.with_suffix(".partial")
        self._writer = pa.ipc.new_file(str(self._temporary), self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None and self._pending.num_rows:
            self._write(self._pending.num_rows)
        self._writer.close()
        if kind is None:
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)

    def append(self, arrays: Sequence[pa.Array]) -> None:
        """Add rows: one array for each column, of equal lengths, without nulls."""
        added = pa.table(list(arrays), schema=self._schema)
        self._pending = pa.concat_tables([self._pending, added])
        self.rows += added.num_rows
        if self._pending.num_rows >= BATCH_ROWS:
            self._write(self._pending.num_rows // BATCH_ROWS * BATCH_ROWS)

    def _write(self, rows: int) -> None:
        pending = self._pending.combine_chunks()
        for batch in pending.slice(0, rows).to_batches(max_chunksize=BATCH_ROWS):
            # take() copies the slice to buffers of its own, which the checksum is computed over.
            batch = batch.take(_EACH_ROW.slice(0, batch.num_rows))
            value = checksum(self._batches, tuple(column_of(array) for array in batch.columns))
            self._writer.write_batch(batch, custom_metadata={_CHECKSUM: str(value)})
            self._batches += 1
        self._pending = pending.slice(rows)


def checksum(number: int, columns: Sequence[Column]) -> int:
    """Return the CRC-32 of a batch's number and columns; the number detects batches that were exchanged."""
    value = number
    for column in columns:
        for part in _buffers(column):
            value = zlib.crc32(part, value)
    return value


def _buffers(column: Column) -> Iterator[memoryview | bytes]:
    if isinstance(column, Strings):
        yield column._offsets.cast("B")
        yield column._data
    else:
        yield column.cast("B")


_NUMBER_FORMATS: dict[Any, Literal["B", "I", "Q", "q"]] = {
    pa.uint8(): "B",
    pa.uint32(): "I",
    pa.uint64(): "Q",
    pa.int64(): "q",
}


def column_of(array: pa.Array) -> Column:
    """Return the values of *array*, copied out of Arrow's buffers."""
    rows = len(array)
    buffers = array.buffers()
    if array.type == pa.binary():
        offsets = memoryview(buffers[1].to_pybytes()).cast("i")[: rows + 1]
        if any(offset < 0 for offset in (offsets[0], offsets[rows])):
            raise ValueError("negative offsets")
        data = buffers[2].to_pybytes() if buffers[2] is not None else b""
        return Strings(offsets, data[: offsets[rows]])
    numbers: bytes = buffers[1].to_pybytes()
    return memoryview(numbers).cast(_NUMBER_FORMATS[array.type])[:rows]
