"""The form of an entry on disk: whose it is and what its value should be, then the value; blocks on files.

    magic, checksum of all that follows up to the value                       8 bytes
    checksum of the value, length of the key, length of the value             10 bytes
    the key
    the checksum of each piece of the value                                   4 bytes each
    the value

So a part of a value can be verified without the rest. A whole one is verified at once: (m) threads that verify pieces
pass Python's lock on for each, and reads took a quarter longer.
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

_START = struct.Struct("<4sI")
_FACTS = struct.Struct("<IHI")
_CHECKSUM_BYTES = 4

Buffer = bytes | memoryview

Place = Callable[[int], memoryview | bytearray]
"""Gives so many bytes to read a value into."""


class _Head(NamedTuple):
    """What an entry tells of its value: bytes, its checksum, and those of its pieces."""

    length: int
    checksum: int
    pieces: bytes


class Entry(NamedTuple):
    """A value on its way to the disk."""

    header: bytes
    value: Buffer


def pack(key: str, value: Buffer) -> Entry:
    """The entry of a value."""
    name = key.encode()
    rest = _FACTS.pack(zlib.crc32(value), len(name), len(value)) + name + _checksums(memoryview(value))
    return Entry(_START.pack(MAGIC, zlib.crc32(rest)) + rest, value)


def unpack(key: str, file: BinaryIO, size: int, place: Place) -> memoryview | None:
    """The value in an entry of *size* bytes, or None if it is not what was put under *key*."""
    found = _read_header(key, file.read, size)
    if found is None:
        return None
    value = memoryview(place(found.length))
    if _read_all(file, value) != found.length or zlib.crc32(value) != found.checksum:
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
        OSError: it cannot be read, or that takes waiting.
    """

    def __init__(self, path: str, key: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(self._descriptor).st_size
            self._at = 0
            found = _read_header(key, self._next, size)
            if found is None:
                raise ValueError(f"{path} is not the entry of {key}")
        except BaseException:
            os.close(self._descriptor)
            raise
        self._length, self._sums = found.length, found.pieces
        self._start = size - self._length

    def _next(self, count: int) -> bytes:
        """The next bytes of the head, if they are in the page cache."""
        data = bytearray(count)
        read = os.preadv(self._descriptor, [data], self._at, os.RWF_NOWAIT)
        self._at += read
        return bytes(data[:read])

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


def _read_header(key: str, read: Callable[[int], bytes], size: int) -> _Head | None:
    """What an entry of *size* bytes tells of its value; None if it is not the entry of *key*."""
    name = key.encode()
    start = read(_START.size + _FACTS.size)
    if len(start) < _START.size + _FACTS.size:
        return None
    magic, check = _START.unpack_from(start)
    checksum, name_length, length = _FACTS.unpack_from(start, _START.size)
    count = -(-length // PIECE) * _CHECKSUM_BYTES
    if magic != MAGIC or name_length != len(name) or len(start) + name_length + count + length != size:
        return None
    rest = read(name_length + count)
    if len(rest) != name_length + count or rest[:name_length] != name:
        return None
    if zlib.crc32(rest, zlib.crc32(start[_START.size :])) != check:
        return None
    return _Head(length, checksum, rest[name_length:])


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
