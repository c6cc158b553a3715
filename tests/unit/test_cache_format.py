"""The format of an entry on disk."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idcfs.cache.format import PIECE, EntryFile, pack, unpack

KEY = "aws/series/name/300/0"

lengths = st.integers(0, 3 * PIECE) | st.sampled_from([PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])


def content_of(length: int) -> bytes:
    return (b"%09d" % length + bytes(range(251))) * (length // 200 + 1)


def packed(key: str, length: int) -> bytes:
    return b"".join(pack(key, content_of(length)[:length]))


def unpacked(key: str, form: bytes) -> bytes | None:
    found = unpack(key, io.BytesIO(form), bytearray)
    return None if found is None else bytes(found)


def file_of(folder: Path, form: bytes) -> str:
    path = folder / "entry"
    path.write_bytes(form)
    return str(path)


@given(st.text(max_size=100), lengths)
def test_a_packed_value_is_unpacked(key: str, length: int) -> None:
    assert unpacked(key, packed(key, length)) == content_of(length)[:length]


@given(lengths, st.data())
def test_any_flipped_bit_and_any_missing_byte_is_found(length: int, data: st.DataObject) -> None:
    form = packed(KEY, length)
    bit = data.draw(st.integers(0, 8 * len(form) - 1))
    flipped = bytearray(form)
    flipped[bit // 8] ^= 1 << bit % 8
    assert unpacked(KEY, bytes(flipped)) is None
    assert unpacked(KEY, form[: data.draw(st.integers(0, len(form) - 1))]) is None
    assert unpacked(KEY, form + b"x") is None
    assert unpacked(KEY + "1", form) is None


@given(lengths.filter(bool), st.data())
def test_a_part_that_is_read_is_that_part_of_the_value(
    tmp_path_factory: pytest.TempPathFactory, length: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    file = EntryFile(file_of(tmp_path_factory.mktemp("entry"), packed(KEY, length)), KEY)
    try:
        part = file.read(start, stop)
        # Not every file system supports RWF_NOWAIT.
        assert part is None or bytes(part) == content_of(length)[start:stop]
        assert part is not None or not supports_nowait(tmp_path_factory.getbasetemp())
    finally:
        file.close()


def supports_nowait(folder: Path) -> bool:
    path = folder / "probe"
    path.write_bytes(b"probe")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(5)], 0, os.RWF_NOWAIT) == 5
    except OSError:
        return False
    finally:
        os.close(descriptor)


def test_a_damaged_part_is_not_returned_and_other_parts_are(tmp_path: Path) -> None:
    if not supports_nowait(tmp_path):
        pytest.skip("the file system does not support RWF_NOWAIT")
    form = packed(KEY, 3 * PIECE)
    file = EntryFile(file_of(tmp_path, form), KEY)
    try:
        with open(tmp_path / "entry", "r+b") as damaged:
            damaged.seek(len(form) - 3 * PIECE + PIECE + 5)
            damaged.write(b"!")
        assert file.read(PIECE, PIECE + 1) is None
        assert file.read(PIECE - 1, PIECE + 1) is None
        assert bytes(file.read(0, PIECE) or b"") == content_of(3 * PIECE)[:PIECE]
        os.truncate(tmp_path / "entry", 100)
        assert file.read(0, 10) is None
    finally:
        file.close()


@pytest.mark.parametrize("form", [b"", b"IDC2", packed("another", 100), packed(KEY, 100)[:-1]])
def test_a_file_that_is_not_the_entry_is_refused_and_closed(tmp_path: Path, form: bytes) -> None:
    with pytest.raises(ValueError, match="is not the entry of"):
        EntryFile(file_of(tmp_path, form), KEY)
    assert not [
        fd
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}") and "entry" in os.readlink(f"/proc/self/fd/{fd}")
    ]
