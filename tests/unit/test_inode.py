import pytest
from hypothesis import given
from hypothesis import strategies as st

from idcfs import inode
from idcfs.inode import FileAddress, FolderAddress

files = st.builds(FileAddress, st.integers(0, inode.MAX_SERIES), st.integers(0, inode.MAX_INSTANCE))
folders = st.builds(
    FolderAddress,
    st.integers(0, inode.MAX_GENERATION),
    st.integers(1, inode.MAX_LEVEL),
    st.integers(0, inode.MAX_GROUP),
    st.integers(0, inode.MAX_FACET),
)


@given(files)
def test_a_file_comes_back_from_its_number(address: FileAddress) -> None:
    number = inode.pack_file(*address)
    assert inode.unpack(number) == address
    assert 1 < number < 1 << 63


@given(folders)
def test_a_folder_comes_back_from_its_number(address: FolderAddress) -> None:
    number = inode.pack_folder(*address)
    assert inode.unpack(number) == address
    assert 1 < number < 1 << 63


def test_the_root_is_fuses_root() -> None:
    assert inode.pack_folder(0, 0, 0) == 1
    assert inode.unpack(1) == FolderAddress(0, 0, 0)


@given(st.one_of(files, folders), st.one_of(files, folders))
def test_different_things_have_different_numbers(
    one: FileAddress | FolderAddress, other: FileAddress | FolderAddress
) -> None:
    def number(address: FileAddress | FolderAddress) -> int:
        if isinstance(address, FileAddress):
            return inode.pack_file(*address)
        return inode.pack_folder(*address)

    assert (one == other and type(one) is type(other)) == (number(one) == number(other))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        inode.pack_file(0, inode.MAX_INSTANCE + 1)
    with pytest.raises(OverflowError):
        inode.pack_folder(inode.MAX_GENERATION + 1, 0, 0)


@pytest.mark.parametrize("number", [-1, 1 << 63, (1 << 64) - 1])
def test_a_number_never_packed_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="no inode number"):
        inode.unpack(number)
