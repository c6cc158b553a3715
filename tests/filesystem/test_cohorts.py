"""Cohorts without FUSE: what is written, what is shown of it, and when it is evaluated."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trio

from idcfs.catalog.index import Index
from idcfs.cohorts.text import MAX_TEXT
from idcfs.errors import (
    AlreadyThere,
    CatalogueDamaged,
    DeadlineExceeded,
    IsAFolder,
    NameRefused,
    NameTooLong,
    NotAFolder,
    NotFound,
    NotThereNow,
    QueryRefused,
    QueryTooLong,
    ReadOnly,
)
from idcfs.inode import pack_folder
from idcfs.node import Node
from idcfs.tree.cohorts import COHORTS
from tests.conftest import WarningsLogged
from tests.filesystem.opened import Opened, open_filesystem, path_of
from tests.filesystem.rows import ALL, EARLIER, PRIOR, SMALL, SPACES
from tests.index_factory import Row, instances, make_index
from tests.memory_store import MemoryStore
from tests.processes import PATIENCE, children_of, until_true

NLST = b"SELECT SeriesInstanceUID FROM index WHERE collection_id = 'nlst'"
TCGA = b"SELECT SeriesInstanceUID FROM index WHERE collection_id = 'tcga'"
NOTHING = b"SELECT SeriesInstanceUID FROM index WHERE false"
BROKEN = b"SELECT SeriesInstanceUID FROM indexx"

ROOT = pack_folder(*COHORTS)

PROGRAM = "idcfs.cohorts.build"
"""What the processes run that evaluate."""


async def make(opened: Opened, name: str, text: bytes = b"") -> Node:
    """A cohort of the file system, with a text."""
    node = await opened.create(ROOT, name.encode())
    if text:
        await write(opened, name, text)
    return node


async def write(opened: Opened, name: str, text: bytes) -> None:
    """Write a query as the shell's > does."""
    files = opened.filesystem.files
    handle = await opened.open_draft((await opened.node(f"cohorts/{name}/.query")).inode, append=False, truncate=True)
    try:
        await files[handle].flush()
        files[handle].write(0, text)
        await files[handle].flush()
    finally:
        await opened.filesystem.release_file(handle)


def keep(folder: Path, name: str, text: bytes) -> None:
    """Put a cohort's file there by hand."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.sql").write_bytes(text)


def children() -> set[int]:
    """The processes that evaluate for this one."""
    return set(children_of(os.getpid(), PROGRAM))


def run_before(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Have a shell run *script* in each process that evaluates; what it does not end goes on as always."""
    python = folder / "python"
    cases = f'case "$*" in *{PROGRAM}*)\n{script}\n;; esac'
    python.write_text(f'#!/bin/sh\n{cases}\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr("idcfs.processes.child.sys", SimpleNamespace(executable=str(python)))


class Guard:
    """Notices, while it is closed, whether a process that evaluates is started; such a process fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._closed, self._noticed = folder / "closed", folder / "noticed"
        closed, noticed = shlex.quote(str(self._closed)), shlex.quote(str(self._noticed))
        run_before(monkeypatch, folder, f"if [ -e {closed} ]; then touch {noticed}; exit 9; fi")

    def close(self) -> None:
        self._closed.touch()

    def open(self) -> None:
        self._closed.unlink()

    def check(self) -> None:
        assert not self._noticed.exists(), "a text was evaluated"


@pytest.fixture
def no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """No process that evaluates may be started until this is opened."""
    guard = Guard(monkeypatch, tmp_path)
    guard.close()
    yield guard
    guard.check()


class Gate:
    """Lets the processes that evaluate begin while it is open."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def open(self) -> None:
        self._file.touch()

    def close(self) -> None:
        self._file.unlink()


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A closed one."""
    file = tmp_path / "gate"
    run_before(monkeypatch, tmp_path, f"while [ ! -e {shlex.quote(str(file))} ]; do sleep 0.02; done")
    # Who writes waits in vain.
    monkeypatch.setattr("idcfs.cohorts.registry.BIND_SECONDS", 1)
    return Gate(file)


def kept(cache: Path, name: str = "") -> list[Path]:
    """The results that are kept, or one file of each."""
    return sorted(cache.glob(f"catalogue/*/cohorts/*/{name}"))


async def test_a_cohort_is_a_tree_of_the_series_that_its_query_names(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        made = await make(opened, "mine")
        assert await opened.names("cohorts") == ["mine"]
        assert await opened.names("cohorts/mine") == []
        await write(opened, "mine", NLST)
        folder = await opened.node("cohorts/mine")
        assert (folder.inode, folder.is_folder, folder.permanent) == (made.inode, True, False)
        entries = await opened.entries(folder.inode)
        assert list(entries) == [b"nlst"]
        assert entries[b"nlst"] == await opened.getattr(entries[b"nlst"].inode)
        assert entries[b"nlst"] == await opened.node("cohorts/mine/nlst")
        assert not entries[b"nlst"].permanent
        assert not (await opened.node("cohorts/mine/.idc")).permanent
        assert (await opened.node("cohorts/mine")).links == 3
        assert await opened.names("cohorts/mine/nlst") == ["100001", "a b=c"]
        assert (await opened.node("cohorts/mine/nlst/100001")).permanent
        for row in (SMALL, SPACES):
            for instance in instances(row):
                path = f"{path_of(row)}/{instance.name}"
                assert await opened.node(f"cohorts/mine/{path}") == await opened.node(path), "one page cache for both"
                assert await opened.read(f"cohorts/mine/{path}") == instance.content
        with pytest.raises(NotThereNow):
            await opened.node("cohorts/mine/tcga")
        with pytest.raises(NotFound):
            await opened.node("cohorts/mine/nlst/none")


async def test_the_three_files_are_found_by_name_and_never_listed(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine")
        for name in (".error", ".summary"):
            with pytest.raises(NotThereNow):
                await opened.node(f"cohorts/mine/{name}")
        await write(opened, "mine", NLST)
        assert await opened.names("cohorts/mine") == ["nlst"]
        assert await opened.read("cohorts/mine/.query") == NLST
        query = await opened.node("cohorts/mine/.query")
        assert (query.size, query.writable, query.permanent) == (len(NLST), True, False)
        summary = json.loads(await opened.read("cohorts/mine/.summary"))
        assert (summary["series"], summary["patients"], summary["collections"]) == (3, 2, ["nlst"])
        assert (await opened.node("cohorts/mine/.summary")).size == len(await opened.read("cohorts/mine/.summary"))
        with pytest.raises(NotThereNow):
            await opened.node("cohorts/mine/.error")
        await write(opened, "mine", NOTHING)
        assert b"no rows" in await opened.read("cohorts/mine/.error")
        for name in (".query", ".error", ".summary"):
            inode = (await opened.node(f"cohorts/mine/{name}")).inode
            with pytest.raises(NotAFolder):
                await opened.open_folder(inode)
        with pytest.raises(IsAFolder):
            await opened.open((await opened.node("cohorts/mine")).inode)


async def test_the_control_folder_of_a_cohort_and_below_it(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", b"-- layout: %word/%SeriesInstanceUID\nSELECT 'x' AS word, * FROM index LIMIT 3")
        told = json.loads(await opened.read("cohorts/mine/.idc/info.json"))
        assert (told["path"], told["series"], told["folders"]) == ("", 3, 1)
        assert json.loads(await opened.read("cohorts/mine/x/.idc/info.json"))["series"] == 3
        (series, *_) = await opened.names("cohorts/mine/x")
        told = json.loads(await opened.read(f"cohorts/mine/x/{series}/.idc/info.json"))
        assert told["SeriesInstanceUID"] == series


async def test_a_text_may_be_written_anyhow(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine")
        files, inode = opened.filesystem.files, (await opened.node("cohorts/mine/.query")).inode

        async def text() -> bytes:
            return await opened.read("cohorts/mine/.query")

        @contextlib.asynccontextmanager
        async def draft(append: bool = False, truncate: bool = False) -> AsyncIterator[int]:
            handle = await opened.open_draft(inode, append, truncate)
            yield handle
            with contextlib.suppress(QueryRefused):
                await files[handle].flush()
            with contextlib.suppress(QueryRefused):
                await opened.filesystem.release_file(handle)

        async with draft() as handle:
            files[handle].write(3, b"def")
            files[handle].write(0, b"abc")
            assert await files[handle].read(1, 4) == b"bcde"
            assert await text() == b"", "nothing counts before it is closed"
            assert (await opened.node("cohorts/mine/.query")).size == 6
        assert await text() == b"abcdef"
        async with draft() as handle:
            files[handle].write(8, b"x")
        assert await text() == b"abcdef\0\0x"
        async with draft() as handle:
            files[handle].resize(2)
            files[handle].write(1, b"XY")
        assert await text() == b"aXY"
        async with draft(truncate=True) as handle:
            files[handle].write(0, b"one ")
        async with draft(append=True) as handle:
            files[handle].write(0, b"two ")
            files[handle].write(0, b"three")
            assert await files[handle].read(4, 100) == b"two three"
        assert await text() == b"one two three"
        async with draft(append=True) as one, draft(append=True) as two:
            files[one].write(0, b" four")
            files[two].write(0, b" five")
        assert await text() == b"one two three five four"
        with contextlib.suppress(QueryRefused):
            await opened.resize(inode, 3)
        assert await text() == b"one"
        async with draft() as one, draft() as two:
            files[one].write(0, b"first")
            files[two].write(0, b"second")
        assert await text() == b"first", "the last to close"


async def test_a_handle_that_is_open_to_be_read_writes_nothing(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine")
        files, inode = opened.filesystem.files, (await opened.node("cohorts/mine/.query")).inode
        handle = await opened.open(inode)
        with pytest.raises(ReadOnly):
            files[handle].write(0, b"x")
        await files[handle].flush()
        await opened.filesystem.release_file(handle)
        for other in ("nlst", "cohorts", "cohorts/mine", f"{path_of(SMALL)}/{instances(SMALL)[0].name}"):
            with pytest.raises(ReadOnly):
                await opened.open_draft((await opened.node(other)).inode, append=False, truncate=False)
            with pytest.raises(ReadOnly):
                await opened.resize((await opened.node(other)).inode, 0)


async def test_a_text_has_a_greatest_length(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine")
        files, inode = opened.filesystem.files, (await opened.node("cohorts/mine/.query")).inode
        handle = await opened.open_draft(inode, append=False, truncate=False)
        with pytest.raises(QueryTooLong):
            files[handle].write(MAX_TEXT, b"x")
        with pytest.raises(QueryTooLong):
            await files[handle].flush()
        with pytest.raises(QueryTooLong):
            files[handle].resize(MAX_TEXT + 1)
        with pytest.raises(QueryTooLong):
            await opened.resize(inode, MAX_TEXT + 1)
        await opened.filesystem.release_file(handle)
        with pytest.raises(QueryTooLong):
            await write(opened, "mine", b"SELECT 1 --" + b"x" * (1 << 20))


async def test_only_what_was_written_is_evaluated(
    cache: Path, index: Index, store: MemoryStore, no_child: Guard
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        keep(cache / "cohorts", "mine", NLST)
        files, inode = opened.filesystem.files, (await opened.node("cohorts/mine/.query")).inode
        handle = await opened.open_draft(inode, append=False, truncate=True)
        # The shell closes its copy before it writes.
        await files[handle].flush()
        assert (cache / "cohorts" / "mine.sql").read_bytes() == NLST
        no_child.open()
        files[handle].write(0, TCGA)
        await files[handle].flush()
        assert await opened.names("cohorts/mine") == ["tcga"]
        no_child.close()
        await files[handle].flush()
        await opened.filesystem.release_file(handle)
        assert await opened.names("cohorts/mine") == ["tcga"]
        handle = await opened.open_draft(inode, append=True, truncate=False)
        await files[handle].flush()
        await opened.filesystem.release_file(handle)
        assert await opened.read("cohorts/mine/.query") == TCGA


async def test_a_bare_truncation_counts_when_the_file_is_let_go(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        files, inode = opened.filesystem.files, (await opened.node("cohorts/mine/.query")).inode
        handle = await opened.open_draft(inode, append=False, truncate=True)
        await files[handle].flush()
        assert await opened.names("cohorts/mine") == ["nlst"]
        await opened.filesystem.release_file(handle)
        assert await opened.names("cohorts/mine") == []
        assert await opened.read("cohorts/mine/.query") == b""


async def test_a_text_that_is_refused_is_kept_and_changes_nothing(
    cache: Path, index: Index, store: MemoryStore, no_child: Guard
) -> None:
    no_child.open()
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        for _ in range(2):
            with pytest.raises(QueryRefused, match="indexx"):
                await write(opened, "mine", BROKEN)
            assert await opened.read("cohorts/mine/.query") == BROKEN
            assert b"indexx" in await opened.read("cohorts/mine/.error")
            assert await opened.names("cohorts/mine/nlst") == ["100001", "a b=c"]
            assert json.loads(await opened.read("cohorts/mine/.summary"))["series"] == 3
    no_child.close()
    async with open_filesystem(cache, index, store) as opened:
        assert b"indexx" in await opened.read("cohorts/mine/.error")
        assert await opened.names("cohorts/mine/nlst") == ["100001", "a b=c"]
        no_child.open()
        await write(opened, "mine", TCGA)
        assert await opened.names("cohorts/mine") == ["tcga"]
        with pytest.raises(NotThereNow):
            await opened.node("cohorts/mine/.error")
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names("cohorts/mine") == ["tcga"]


async def test_a_refused_text_keeps_the_tree_that_nobody_has_looked_at_yet(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
    for _ in range(2):
        async with open_filesystem(cache, index, store) as opened:
            with pytest.raises(QueryRefused):
                await write(opened, "mine", BROKEN)
            assert await opened.names("cohorts/mine") == ["nlst"]


async def test_a_text_that_was_on_its_way_at_the_end_of_the_mount_lost_nothing(
    cache: Path, index: Index, store: MemoryStore, gate: Gate
) -> None:
    gate.open()
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        gate.close()
        await write(opened, "mine", BROKEN)
    gate.open()
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names("cohorts/mine") == ["nlst"]
        assert b"indexx" in await opened.read("cohorts/mine/.error")


async def test_who_writes_a_text_hears_of_its_errors_where_processes_take_seconds_to_start(
    cache: Path, index: Index, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_before(monkeypatch, tmp_path, "sleep 3")
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine")
        with pytest.raises(QueryRefused, match="indexx"):
            await write(opened, "mine", BROKEN)


@pytest.mark.parametrize("again", [False, True], ids=["in one mount", "in the next mount"])
async def test_a_new_cohort_has_nothing_of_an_old_one_of_its_name(
    cache: Path, index: Index, store: MemoryStore, again: bool
) -> None:
    async def use(opened: Opened) -> None:
        (cache / "cohorts" / "mine.sql").unlink()
        await make(opened, "mine")
        with pytest.raises(QueryRefused):
            await write(opened, "mine", BROKEN)
        assert await opened.names("cohorts/mine") == []

    async with open_filesystem(cache, index, store) as opened:
        old = await make(opened, "mine", NLST)
        with pytest.raises(QueryRefused):
            await write(opened, "mine", BROKEN)
        assert await opened.names("cohorts/mine") == ["nlst"]
        if not again:
            await use(opened)
            assert (await opened.node("cohorts/mine")).inode != old.inode
    if again:
        async with open_filesystem(cache, index, store) as opened:
            await use(opened)


async def test_results_are_kept_for_the_next_mount_of_the_same_index_only(
    cache: Path, index: Index, store: MemoryStore, tmp_path: Path, no_child: Guard
) -> None:
    no_child.open()
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        before = await opened.names("cohorts/mine/nlst")
        with pytest.raises(QueryRefused):
            await make(opened, "broken", BROKEN)
    no_child.close()
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names("cohorts/mine/nlst") == before
        assert b"indexx" in await opened.read("cohorts/broken/.error")
    no_child.open()
    newer = make_index(tmp_path / "newer", [*ALL, Row("nlst", "new")], PRIOR)
    async with open_filesystem(cache, newer, store) as opened:
        assert await opened.names("cohorts/mine/nlst") == [*before, "new"]


async def test_a_table_that_was_fetched_anew_counts(
    cache: Path, index: Index, store: MemoryStore, tmp_path: Path
) -> None:
    table = tmp_path / "extra.parquet"
    fetched = replace(index, fetched={"extra": table})
    for row in (SMALL, SPACES):
        pq.write_table(pa.table({"crdc_series_uuid": [row.uuid], "more": ["x" * len(row.patient or "")]}), table)
        async with open_filesystem(cache, fetched, store) as opened:
            if not await opened.names("cohorts"):
                await make(opened, "mine", b"SELECT crdc_series_uuid FROM extra")
            assert await opened.names("cohorts/mine/nlst") == [row.patient]


async def test_what_no_longer_works_with_a_new_index_says_so(
    cache: Path, index: Index, store: MemoryStore, tmp_path: Path
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "old", EARLIER.uuid.encode())
        assert await opened.names("cohorts/old/nlst") == ["a b=c"]
    newer = make_index(tmp_path / "newer", ALL)
    async with open_filesystem(cache, newer, store) as opened:
        assert b"line 1" in await opened.read("cohorts/old/.error")
        assert await opened.names("cohorts/old") == []


async def test_many_cohorts_are_evaluated_only_when_looked_into(
    cache: Path, index: Index, store: MemoryStore, no_child: Guard
) -> None:
    for number in range(50):
        keep(cache / "cohorts", f"c{number:02}", NLST)
    async with open_filesystem(cache, index, store) as opened:
        names = await opened.names("cohorts")
        assert names == [f"c{number:02}" for number in range(50)]
        for name in names:
            assert await opened.read(f"cohorts/{name}/.query") == NLST
        assert len(opened.catalogue.temporary) == 0
        no_child.open()
        assert await opened.names("cohorts/c07") == ["nlst"]
        assert len(opened.catalogue.temporary) == 1


async def test_changes_by_hand_count_from_the_next_look_on(cache: Path, index: Index, store: MemoryStore) -> None:
    folder = cache / "cohorts"
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names("cohorts") == []
        keep(folder, "mine", NLST)
        assert await opened.names("cohorts") == ["mine"]
        assert await opened.names("cohorts/mine") == ["nlst"]
        node = await opened.node("cohorts/mine")
        keep(folder, "mine", TCGA)
        assert await opened.names("cohorts/mine") == ["tcga"]
        assert await opened.read("cohorts/mine/.query") == TCGA
        assert (await opened.node("cohorts/mine")).inode == node.inode
        keep(folder, ".hidden", NLST)
        (folder / "notes.txt").write_text("not a cohort")
        (folder / "folder.sql").mkdir()
        assert await opened.names("cohorts") == ["mine"]
        (folder / "mine.sql").unlink()
        assert await opened.names("cohorts") == []
        for look in (opened.getattr, opened.open_folder):
            with pytest.raises(NotThereNow):
                await look(node.inode)


async def test_a_cohort_with_another_name_is_the_same_cohort(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        made = await make(opened, "mine", NLST)
        before = await opened.node("cohorts/mine/nlst")
        await make(opened, "other")
        with pytest.raises(AlreadyThere):
            await opened.rename(ROOT, b"mine", ROOT, b"other")
        await opened.rename(ROOT, b"mine", ROOT, b"yours")
        assert await opened.names("cohorts") == ["other", "yours"]
        assert (await opened.node("cohorts/yours")).inode == made.inode
        assert await opened.node("cohorts/yours/nlst") == before
        with pytest.raises(NotThereNow):
            await opened.node("cohorts/mine")
        with pytest.raises(NotThereNow):
            await opened.rename(ROOT, b"mine", ROOT, b"x")
        gone = await make(opened, "gone", TCGA)
        assert await opened.names("cohorts/gone") == ["tcga"]
        (cache / "cohorts" / "gone.sql").unlink()
        await opened.rename(ROOT, b"yours", ROOT, b"gone")
        await opened.rename(ROOT, b"gone", ROOT, b"yours")
        with pytest.raises(NotThereNow):
            await opened.getattr(gone.inode)
        assert len(opened.catalogue.temporary) == 1
        for old, new in ((before.inode, ROOT), (ROOT, made.inode), (ROOT, 1)):
            with pytest.raises(ReadOnly):
                await opened.rename(old, b"yours", new, b"x")
        await write(opened, "yours", TCGA)
        assert (cache / "cohorts" / "yours.sql").read_bytes() == TCGA


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b".hidden", NameRefused),
        (b"a\nb", NameRefused),
        (b"a\x7f", NameRefused),
        (b"\xff", NameRefused),
        (b"x" * 252, NameTooLong),
    ],
)
async def test_names_that_no_cohort_can_have(
    cache: Path, index: Index, store: MemoryStore, name: bytes, error: type[Exception]
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine")
        with pytest.raises(error):
            await opened.create(ROOT, name)
        with pytest.raises(error):
            await opened.rename(ROOT, b"mine", ROOT, name)
        with pytest.raises(NotThereNow):
            await opened.lookup(ROOT, name)
        await make(opened, "x" * 251)
        with pytest.raises(AlreadyThere):
            await make(opened, "mine")
        assert await opened.names("cohorts") == ["mine", "x" * 251]


async def test_cohorts_are_made_and_removed_in_their_folder_only(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        for path in ("", "nlst", "cohorts/mine", "cohorts/mine/nlst", ".idc"):
            inode = (await opened.node(path)).inode
            with pytest.raises(ReadOnly):
                await opened.create(inode, b"new")
            with pytest.raises(ReadOnly):
                await opened.delete(inode, b"nlst")
        with pytest.raises(NotThereNow):
            await opened.delete(ROOT, b"other")
        await opened.delete(ROOT, b"mine")
        assert await opened.names("cohorts") == []
        assert list((cache / "cohorts").glob("*.sql")) == []


async def test_what_is_open_of_a_cohort_stays_when_it_is_removed(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        instance = instances(SMALL)[0]
        file = await opened.open((await opened.node(f"cohorts/mine/{path_of(SMALL)}/{instance.name}")).inode)
        folder = await opened.open_folder((await opened.node("cohorts/mine/nlst")).inode)
        draft = await opened.open_draft((await opened.node("cohorts/mine/.query")).inode, append=False, truncate=True)
        await opened.delete(ROOT, b"mine")
        assert await opened.filesystem.files[file].read(0, 100) == instance.content[:100]
        assert [name for name, _ in await opened.filesystem.folders[folder].page(0)] == [b"100001", b"a b=c"]
        opened.filesystem.files[draft].write(0, NLST)
        with pytest.raises(NotThereNow):
            await opened.filesystem.files[draft].flush()
        await opened.filesystem.release_file(draft)
        assert list((cache / "cohorts").glob("*.sql")) == []
        assert len(opened.catalogue.temporary) == 1
        opened.filesystem.release_folder(folder)
        assert len(opened.catalogue.temporary) == 0


async def test_a_view_goes_when_it_is_replaced_and_forgotten(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        patient = await opened.node("cohorts/mine/nlst/100001")
        opened.filesystem.remember(patient.inode, 2)
        await write(opened, "mine", TCGA)
        assert await opened.names("cohorts/mine") == ["tcga"]
        assert len(opened.catalogue.temporary) == 2
        assert await opened.getattr(patient.inode) == patient
        assert list(await opened.entries(patient.inode)) == [
            name.encode() for name in await opened.names("nlst/100001")
        ]
        opened.filesystem.forget(patient.inode)
        assert len(opened.catalogue.temporary) == 2
        opened.filesystem.forget(patient.inode)
        assert len(opened.catalogue.temporary) == 1
        for text in (NLST, TCGA) * 3:
            await write(opened, "mine", text)
            await opened.names("cohorts/mine")
        assert len(opened.catalogue.temporary) == 1


async def test_the_same_folder_in_two_views_has_two_numbers(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        await make(opened, "yours", NLST)
        mine = await opened.node("cohorts/mine/nlst")
        assert mine.inode != (await opened.node("cohorts/yours/nlst")).inode
        await write(opened, "mine", NLST + b" ")
        assert mine.inode != (await opened.node("cohorts/mine/nlst")).inode


async def test_an_open_folder_lists_one_tree_whatever_comes(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        # More than one answer holds, so that the listing goes on after the change.
        await make(opened, "mine", b"-- layout: %PatientID-%crdc_series_uuid\nFROM index SELECT *")
        inode = (await opened.node("cohorts/mine")).inode
        whole = [name for name, _ in (await opened.entries(inode)).items()]
        handle = await opened.open_folder(inode)
        first = await opened.filesystem.folders[handle].page(0)
        await write(opened, "mine", TCGA)
        assert await opened.names("cohorts/mine") == ["tcga"]
        assert await opened.filesystem.folders[handle].page(0) == first
        assert [name for name, _ in await opened.filesystem.folders[handle].page(3)] == whole[3:]
        opened.filesystem.release_folder(handle)
        handle = await opened.open_folder((await opened.node("cohorts")).inode)
        await make(opened, "another")
        assert [name for name, _ in await opened.filesystem.folders[handle].page(0)] == [b"mine"]
        opened.filesystem.release_folder(handle)


async def test_a_look_waits_no_longer_than_a_call_may(
    cache: Path, index: Index, store: MemoryStore, gate: Gate
) -> None:
    keep(cache / "cohorts", "mine", NLST)
    async with open_filesystem(cache, index, store, seconds=1) as opened:
        for path in ("cohorts/mine/nlst", "cohorts/mine/.error", "cohorts/mine/.summary"):
            with pytest.raises(DeadlineExceeded, match="mine"):
                await opened.node(path)
        folder = await opened.node("cohorts/mine")
        with pytest.raises(DeadlineExceeded):
            await opened.entries(folder.inode)
        assert await opened.read("cohorts/mine/.query") == NLST
        gate.open()
        with trio.fail_after(PATIENCE):
            while True:
                with contextlib.suppress(DeadlineExceeded):
                    assert await opened.names("cohorts/mine") == ["nlst"]
                    break


@pytest.mark.parametrize("level", [1, 2, 4])
async def test_a_cohort_whose_files_are_damaged_while_it_is_shown_is_repaired(
    cache: Path, index: Index, store: MemoryStore, level: int
) -> None:
    path = f"cohorts/mine/{path_of(SMALL)}"
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
    async with open_filesystem(cache, index, store) as opened:
        inode = (await opened.node("cohorts/mine")).inode
        # Opened, and nothing read of it yet.
        await opened.read("cohorts/mine/.summary")
        (file,) = kept(cache, f"level{level}.arrow")
        file.write_bytes(b"\xff" * file.stat().st_size)
        with pytest.raises(CatalogueDamaged):
            await opened.node(path)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(opened.filesystem.repair)
        assert await opened.names(path) == [instance.name for instance in instances(SMALL)]
        assert (await opened.node("cohorts/mine")).inode == inode


@pytest.mark.parametrize("name", ["level1.arrow", "view.json", "facts.json"])
async def test_a_kept_result_that_is_damaged_is_evaluated_again(
    cache: Path, index: Index, store: MemoryStore, name: str
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "mine", NLST)
        assert await opened.names("cohorts/mine") == ["nlst"]
    (file,) = kept(cache, name)
    file.write_bytes(b"\xff" * 10)
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names("cohorts/mine/nlst") == ["100001", "a b=c"]
        with pytest.raises(NotThereNow):
            await opened.node("cohorts/mine/.error")


async def test_another_text_ends_the_evaluation_of_the_one_before(
    cache: Path, index: Index, store: MemoryStore, gate: Gate
) -> None:
    keep(cache / "cohorts", "mine", NLST)
    async with open_filesystem(cache, index, store) as opened, trio.open_nursery() as nursery:
        found: list[list[str]] = []

        async def look() -> None:
            found.append(await opened.names("cohorts/mine"))

        nursery.start_soon(look)
        await until_true(children)
        first = children()
        nursery.start_soon(write, opened, "mine", TCGA)
        await until_true(lambda: children() - first)
        assert len(children()) == 1
        gate.open()
        await until_true(lambda: found)
        assert found == [["tcga"]], "who waits is given the newest"


async def test_removing_a_cohort_ends_its_evaluation(cache: Path, index: Index, store: MemoryStore, gate: Gate) -> None:
    keep(cache / "cohorts", "mine", NLST)
    async with open_filesystem(cache, index, store, seconds=1) as opened:
        with pytest.raises(DeadlineExceeded):
            await opened.names("cohorts/mine")
        await until_true(children)
        await opened.delete(ROOT, b"mine")
        await until_true(lambda: not children())


async def test_two_evaluate_at_a_time_and_all_in_the_end(
    cache: Path, index: Index, store: MemoryStore, gate: Gate
) -> None:
    for number in range(6):
        keep(cache / "cohorts", f"c{number}", NLST + b" " * number)
    async with open_filesystem(cache, index, store, seconds=PATIENCE) as opened:
        found = []

        async def look(name: str) -> None:
            found.append(await opened.names(f"cohorts/{name}"))

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(look, f"c{number}")
            await until_true(lambda: len(children()) == 2)
            await trio.sleep(0.5)
            assert len(children()) == 2
            gate.open()
        assert found == [["nlst"]] * 6


async def test_nothing_is_left_of_an_evaluation_when_the_mount_ends(
    cache: Path, index: Index, store: MemoryStore, gate: Gate
) -> None:
    keep(cache / "cohorts", "mine", NLST)
    async with open_filesystem(cache, index, store, seconds=1) as opened:
        with pytest.raises(DeadlineExceeded):
            await opened.names("cohorts/mine")
        await until_true(children)
    assert children() == set()
    assert kept(cache) == []


@pytest.mark.parametrize(
    ("answer", "told", "warnings"),
    [
        ('[1, true, "Done"]', "idcfs failed", ["mine was not evaluated"]),
        # It is tried a second time.
        ("this is no message", "ended its process", ["cannot be understood"] * 2),
    ],
    ids=["another answer", "no answer"],
)
async def test_an_evaluation_that_fails_unheard_of_is_told_and_ends_nothing(
    cache: Path,
    index: Index,
    store: MemoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings_logged: WarningsLogged,
    answer: str,
    told: str,
    warnings: list[str],
) -> None:
    # The last argument is the descriptor of its socket.
    sends = f"import os, sys; os.write(int(sys.argv[1]), {answer.encode()!r} + bytes([10]))"
    async with open_filesystem(cache, index, store) as opened:
        await make(opened, "works", NLST)
        with monkeypatch.context() as patch:
            run_before(patch, tmp_path, f'exec {shlex.quote(sys.executable)} -c {shlex.quote(sends)} "$4"')
            with pytest.raises(QueryRefused, match=told):
                await make(opened, "mine", TCGA)
            for warning in warnings:
                warnings_logged.take(warning)
            assert told.encode() in await opened.read("cohorts/mine/.error")
        assert await opened.names("cohorts/works") == ["nlst"]
        assert await opened.names("nlst") == ["100001", "a b=c"]
        await write(opened, "mine", TCGA)
        assert await opened.names("cohorts/mine") == ["tcga"]


async def test_no_process_to_evaluate_in_is_told_and_tried_again(
    cache: Path, index: Index, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged
) -> None:
    keep(cache / "cohorts", "mine", NLST)
    async with open_filesystem(cache, index, store) as opened:
        with monkeypatch.context() as patch:
            patch.setattr("idcfs.processes.child.sys", SimpleNamespace(executable="/no/such/python"))
            assert b"No such file" in await opened.read("cohorts/mine/.error")
            assert await opened.names("cohorts/mine") == []
            warnings_logged.take("cannot be started")
        # A look tries again, without anybody writing the text.
        monkeypatch.setattr("idcfs.cohorts.registry.RETRY_SECONDS", 0)
        assert await opened.names("cohorts/mine") == ["nlst"]


async def test_two_mounts_on_one_folder_see_and_keep_what_the_other_writes(
    cache: Path, index: Index, store: MemoryStore, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    async with (
        open_filesystem(cache, index, store, cohorts=folder) as one,
        open_filesystem(tmp_path / "other", index, store, cohorts=folder) as other,
    ):
        await make(one, "mine", NLST)
        assert await other.names("cohorts/mine") == ["nlst"]
        await write(other, "mine", TCGA)
        assert await one.names("cohorts/mine") == ["tcga"]
        handles = []
        for opened in (one, other):
            inode = (await opened.node("cohorts/mine/.query")).inode
            handles.append((opened.filesystem, await opened.open_draft(inode, append=True, truncate=False)))
        for number, (filesystem, handle) in enumerate(handles):
            filesystem.files[handle].write(0, b"\n-- %d" % number)
        for filesystem, handle in handles:
            await filesystem.files[handle].flush()
            await filesystem.release_file(handle)
        assert await one.read("cohorts/mine/.query") == TCGA + b"\n-- 0\n-- 1"
        await other.delete(ROOT, b"mine")
        assert await one.names("cohorts") == []
