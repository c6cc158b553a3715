"""The form of an entry on disk: whose it is and what its value should be, then the value; blocks on files.

    magic, checksum of all that follows up to the value, length of the key, length of the value    14 bytes
    the key
    the checksum of each piece of the value                                                         4 bytes each
    the value

So a part of a value can be verified without the rest.
"""

import errno
import os
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

PIECE = 16 << 10
"""Bytes that have a checksum of their own: 5 us to verify, and one thousandth more on disk."""

MAGIC = b"IDC2"

_HEADER = struct.Struct("<4sIHI")
_CHECKSUM_BYTES = 4

Buffer = bytes | memoryview

Place = Callable[[int], memoryview | bytearray]
"""Gives so many bytes to read a value into."""


class Entry(NamedTuple):
    """A value on its way to the disk."""

    header: bytes
    value: Buffer


def pack(key: str, value: Buffer) -> Entry:
    """The entry of a value."""
    name = key.encode()
    rest = name + _checksums(memoryview(value))
    return Entry(_HEADER.pack(MAGIC, _check(rest, len(value)), len(name), len(value)) + rest, value)


def unpack(key: str, file: BinaryIO, size: int, place: Place) -> memoryview | None:
    """The value in an entry of *size* bytes, or None if it is not what was put under *key*."""
    found = _read_header(key, file.read, size)
    if found is None:
        return None
    length, checksums = found
    value = memoryview(place(length))
    if _read_all(file, value) != length or _checksums(value) != checksums:
        return None
    return value


def write(descriptor: int, entry: Entry) -> None:
    """Write an entry into an empty file.

    Raises:
        OSError: it is not written whole.
    """
    written = os.writev(descriptor, entry)
    rest = memoryview(entry.value)[max(0, written - len(entry.header)) :]
    if written < len(entry.header):
        raise OSError(errno.ENOSPC, "a header was cut short")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class EntryFile:
    """An open file that holds the entry of *key*; parts of its value are read without waiting for the disk.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """

    def __init__(self, path: str, key: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(self._descriptor).st_size
            found = _read_header(key, lambda count: os.read(self._descriptor, count), size)
            if found is None:
                raise ValueError(f"{path} is not the entry of {key}")
        except BaseException:
            os.close(self._descriptor)
            raise
        self._length, self._sums = found
        self._start = size - self._length

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def read(self, start: int, stop: int) -> memoryview | None:
        """The value's bytes from *start* to *stop*, if they are in the page cache and verify."""
        first = start // PIECE
        begin, end = first * PIECE, min(self._length, -(-stop // PIECE) * PIECE)
        data = memoryview(bytearray(end - begin))
        try:
            if os.preadv(self._descriptor, [data], self._start + begin, os.RWF_NOWAIT) != len(data):
                return None
        except OSError:
            # Also where a file system knows no such reads.
            return None
        if _checksums(data) != self._sums[first * _CHECKSUM_BYTES : -(-end // PIECE) * _CHECKSUM_BYTES]:
            return None
        return data[start - begin : stop - begin]


def _read_header(key: str, read: Callable[[int], bytes], size: int) -> tuple[int, bytes] | None:
    """The length of the value in an entry of *size* bytes, and its checksums; None if it is not the entry of *key*."""
    name = key.encode()
    head = read(_HEADER.size)
    if len(head) < _HEADER.size:
        return None
    magic, check, name_length, length = _HEADER.unpack(head)
    count = -(-length // PIECE) * _CHECKSUM_BYTES
    if magic != MAGIC or name_length != len(name) or _HEADER.size + name_length + count + length != size:
        return None
    rest = read(name_length + count)
    if len(rest) != name_length + count or rest[:name_length] != name or _check(rest, length) != check:
        return None
    return length, rest[name_length:]


def _check(rest: bytes, length: int) -> int:
    return zlib.crc32(rest, length)


def _checksums(value: memoryview) -> bytes:
    sums = [zlib.crc32(value[start : start + PIECE]) for start in range(0, len(value), PIECE)]
    return struct.pack(f"<{len(sums)}I", *sums)


def _read_all(file: BinaryIO, into: memoryview) -> int:
    filled = 0
    while filled < len(into):
        count = file.readinto(into[filled:])  # type: ignore[attr-defined]  # BinaryIO has none, its kinds here have
        if not count:
            break
        filled += count
    return filled
