"""What one entry in the table of `.idc` files does."""

from pathlib import Path

import pytest

from idcfs.catalog.catalogue import BY_UUID_GENERATION
from idcfs.catalog.index import Index
from idcfs.errors import IsAFolder, NotAFolder, NotFound, NotThereNow, ReadOnly
from idcfs.inode import Facet, FolderAddress, unpack
from idcfs.tree.control import ControlTable, Folder, Names, Where
from idcfs.tree.control_files import CONTROL_FILES
from tests.filesystem.opened import Opened, open_filesystem, path_of
from tests.filesystem.rows import SMALL
from tests.memory_store import MemoryStore

FACET = 63

FOLDERS = ["", "nlst", "nlst/100001", f"nlst/100001/{SMALL.study}", path_of(SMALL)]
EVERYWHERE = {
    **{path: path for path in FOLDERS},
    ".idc/versions/v1": "",
    ".idc/analysis_results/Nuclei": "",
    f".idc/by-uuid/{SMALL.uuid}": SMALL.uuid,
    "cohorts/mine": "",
    "cohorts/mine/nlst": "nlst",
}
"""Folders of all kinds of views, each with its path in its view."""


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ControlTable:
    """The table of mounts, which is what it was when the test ends."""
    for name in ("entries", "providers"):
        monkeypatch.setattr(CONTROL_FILES, name, dict(getattr(CONTROL_FILES, name)))
    return CONTROL_FILES


async def names(opened: Opened, path: str) -> list[str]:
    return await opened.names(f"{path}/.idc".lstrip("/"))


async def test_a_file_is_one_entry_and_then_in_every_folder(
    cache: Path, index: Index, store: MemoryStore, table: ControlTable
) -> None:
    @table.file("example.txt", facet=FACET)
    async def example(folder: Folder) -> bytes:
        path = b"/".join(folder.view.path(folder.address.level, folder.address.group))
        return b"this is <%s>\n" % path * 50_000

    inodes = set()
    async with open_filesystem(cache, index, store) as opened:
        await opened.create((await opened.node("cohorts")).inode, b"mine")
        (cache / "cohorts" / "mine.sql").write_bytes(b"SELECT SeriesInstanceUID FROM index")
        for path, path_in_view in EVERYWHERE.items():
            file = f"{path}/.idc/example.txt".lstrip("/")
            assert "example.txt" in await names(opened, path)
            node = await opened.node(file)
            assert await opened.getattr(node.inode) == node
            content = await opened.read(file)
            assert (node.is_folder, node.size, node.permanent) == (False, len(content), False)
            assert content.startswith(b"this is <%s>\n" % path_in_view.encode())
            assert await opened.read(file, 100_000, 7) == content[100_000:100_007]
            inodes.add(node.inode)
            with pytest.raises(NotAFolder):
                await opened.lookup(node.inode, b"x")
            with pytest.raises(ReadOnly):
                await opened.open_draft(node.inode, append=False, truncate=True)
    assert len(inodes) == len(EVERYWHERE)
    assert {address.facet for address in map(unpack, inodes) if isinstance(address, FolderAddress)} == {FACET}


@pytest.mark.parametrize(
    ("where", "having"),
    [
        (Folder.is_root, FOLDERS[:1]),
        (Folder.is_series, FOLDERS[4:]),
        (lambda folder: folder.level() == "collection_id", FOLDERS[1:2]),
        (lambda folder: folder.level() in ("PatientID", "StudyInstanceUID"), FOLDERS[2:4]),
    ],
    ids=["root", "series", "collections", "patients and studies"],
)
async def test_a_file_is_only_where_its_entry_says(
    cache: Path, index: Index, store: MemoryStore, table: ControlTable, where: Where, having: list[str]
) -> None:
    @table.file("example.txt", facet=FACET, where=where)
    async def example(folder: Folder) -> bytes:
        return b"here"

    async with open_filesystem(cache, index, store) as opened:
        for path in FOLDERS:
            assert ("example.txt" in await names(opened, path)) == (path in having)
            if path in having:
                assert await opened.read(f"{path}/.idc/example.txt".lstrip("/")) == b"here"
            else:
                with pytest.raises(NotFound):
                    await opened.node(f"{path}/.idc/example.txt".lstrip("/"))


@pytest.mark.parametrize("permanent", [False, True])
async def test_a_file_that_a_folder_does_not_have_after_all_is_not_there(
    cache: Path, index: Index, store: MemoryStore, table: ControlTable, permanent: bool
) -> None:
    @table.file("example.txt", facet=FACET, permanent=permanent)
    async def example(folder: Folder) -> bytes | None:
        return b"here" if folder.is_series() else None

    async with open_filesystem(cache, index, store) as opened:
        assert "example.txt" not in await names(opened, "nlst")
        with pytest.raises(NotFound) as missing:
            await opened.node("nlst/.idc/example.txt")
        assert isinstance(missing.value, NotThereNow) != permanent, "the kernel keeps that a name is missing for good"
        node = await opened.node(f"{path_of(SMALL)}/.idc/example.txt")
        assert node.permanent == permanent
        assert opened.filesystem.files[await opened.open(node.inode)].permanent == permanent


async def test_a_folder_is_one_entry_too(cache: Path, index: Index, store: MemoryStore, table: ControlTable) -> None:
    @table.folder("same", facet=FACET, where=Folder.is_series)
    async def same(folder: Folder) -> Names:
        return {b"one": folder.address, b"all": FolderAddress(BY_UUID_GENERATION, 0, 0)}

    async with open_filesystem(cache, index, store) as opened:
        series = path_of(SMALL)
        assert await opened.names(f"{series}/.idc/same") == ["one", "all"]
        assert await opened.node(f"{series}/.idc/same/one") == await opened.node(series)
        assert await opened.names(f"{series}/.idc/same/all") == await opened.names(".idc/by-uuid")
        with pytest.raises(NotFound):
            await opened.node(f"{series}/.idc/same/two")
        with pytest.raises(IsAFolder):
            await opened.open((await opened.node(f"{series}/.idc/same")).inode)


@pytest.mark.parametrize(("name", "facet"), [("new", 2), ("new", Facet.QUERY), ("new", 64), ("info.json", FACET)])
def test_no_two_entries_have_one_name_or_one_number(table: ControlTable, name: str, facet: int) -> None:
    with pytest.raises(ValueError, match=name):
        table.folder(name, facet)(names_of_nothing)


async def names_of_nothing(folder: Folder) -> Names:
    return {}
