import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest
import trio

from idcfs.catalog.index import Index
from idcfs.errors import CatalogueDamaged, IsAFolder, NoSuchAttribute, NotAFolder, NotFound, Unreachable
from idcfs.inode import MAX_GROUP, ROOT, Facet, FolderAddress, pack_file, pack_folder
from idcfs.layout import DEFAULT_TEMPLATE, parse_template
from idcfs.reading import listings as listing
from idcfs.tree.control_files import CONTROL_FILES
from tests.conftest import WarningsLogged
from tests.filesystem.opened import Opened, open_filesystem, path_of
from tests.filesystem.rows import ALL, EARLIER, MISSING, PRIOR, REPORT, SHORT, SLIDE, SMALL, SPACES
from tests.index_factory import INDEX_SCHEMA, Row, instances
from tests.memory_store import FailingStore, MemoryStore
from tests.tree_model import folders, tree

READABLE = [row for row in ALL if row not in (MISSING, SHORT)]
MODEL = tree(ALL, parse_template(DEFAULT_TEMPLATE, frozenset(INDEX_SCHEMA.names)))
SECONDS = 10**9
RELEASED = 1_626_134_400 * SECONDS  # 2021-07-13


def offline() -> FailingStore:
    return FailingStore(MemoryStore(), repeat(Unreachable("no network")))


def below(path: str) -> Iterator[str]:
    """A path's folders, the root first."""
    parts = path.split("/")
    yield from ("/".join(parts[:depth]) for depth in range(len(parts) + 1))


async def test_the_whole_tree_is_as_the_index_says(
    cache: Path, index: Index, store: MemoryStore, warnings_logged: WarningsLogged
) -> None:
    inodes: set[int] = set()
    async with open_filesystem(cache, index, store) as opened:
        for path, names in folders(MODEL).items():
            folder = await opened.node(b"/".join(path).decode())
            entries = await opened.entries(folder.inode)
            names = names if path else [*names, b"cohorts"]
            assert list(entries) == names
            assert folder.is_folder
            assert folder.links == 2 + len(names)
            assert folder.modified_ns == RELEASED
            inodes.add(folder.inode)
            for name, node in entries.items():
                assert await opened.lookup(folder.inode, name) == node
                assert await opened.getattr(node.inode) == node
        assert store.requests == []
        for row in READABLE:
            folder = await opened.node(path_of(row))
            entries = await opened.entries(folder.inode)
            expected = instances(row)
            assert [(name.decode(), node.size) for name, node in entries.items()] == [
                (instance.name, len(instance.content)) for instance in expected
            ]
            for name, node in list(entries.items())[:50]:
                assert (node.is_folder, node.links, node.modified_ns) == (False, 1, 1_600_000_000 * SECONDS)
                assert await opened.lookup(folder.inode, name) == node
                assert await opened.getattr(node.inode) == node
            inodes |= {folder.inode, *(node.inode for node in entries.values())}
        await opened.settled()
    # Which is listed ahead.
    warnings_logged.take(SHORT.uuid)
    assert len(inodes) == len(folders(MODEL)) + len(READABLE) + sum(len(row.sizes) for row in READABLE)


async def test_folders_need_no_network(cache: Path, index: Index) -> None:
    async with open_filesystem(cache, index, offline()) as opened:
        assert await opened.names("nlst") == ["100001", "a b=c"]
        assert (await opened.node(path_of(MISSING))).links == 2
        with pytest.raises(Unreachable):
            await opened.names(path_of(SMALL))


async def test_the_same_numbers_in_every_mount(cache: Path, index: Index, store: MemoryStore, tmp_path: Path) -> None:
    async with (
        open_filesystem(cache, index, store) as one,
        open_filesystem(tmp_path / "other", index, store) as other,
    ):
        for row in (SMALL, REPORT, SPACES):
            for path in [*below(path_of(row)), f"{path_of(row)}/{instances(row)[0].name}"]:
                assert (await one.node(path)).inode == (await other.node(path)).inode


async def test_what_is_not_there_and_what_is_of_the_other_kind(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        for path in ("none", "nlst/none", f"{path_of(SMALL)}/none.dcm", ".idc/none", ".idc/.idc", "nlst/.idc/versions"):
            with pytest.raises(NotFound):
                await opened.node(path)
        file = (await opened.node(f"{path_of(SMALL)}/{instances(SMALL)[0].name}")).inode
        info = (await opened.node(".idc/info.json")).inode
        for inode in (file, info):
            with pytest.raises(NotAFolder):
                await opened.open_folder(inode)
            with pytest.raises(NotAFolder):
                await opened.lookup(inode, b"x")
        for path in ("", "nlst", path_of(SMALL), ".idc", ".idc/versions"):
            with pytest.raises(IsAFolder):
                await opened.open((await opened.node(path)).inode)


@pytest.mark.parametrize(
    "inode",
    [
        pack_file(10_000, 0),
        pack_file(0, 10_000),
        pack_folder(0, 1, 50),
        pack_folder(0, 4, MAX_GROUP),
        pack_folder(0, 9, 0),
        pack_folder(900, 1, 0),
        50 << 56,
    ],
)
async def test_numbers_that_are_of_nothing(cache: Path, index: Index, store: MemoryStore, inode: int) -> None:
    async with open_filesystem(cache, index, store) as opened:
        with pytest.raises(NotFound):
            await opened.getattr(inode)


async def test_idcs_own_folder_is_in_every_folder_and_never_listed(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        for path in below(path_of(SMALL)):
            assert ".idc" not in await opened.names(path)
            control = await opened.node(f"{path}/.idc".lstrip("/"))
            assert control.is_folder
            assert await opened.getattr(control.inode) == control
            names = await opened.names(f"{path}/.idc".lstrip("/"))
            others = ["status.json", "metrics", "versions", "analysis_results", "by-uuid"]
            assert names == (["info.json"] if path else ["info.json", *others])


def views(cache: Path) -> int:
    """How many views are built."""
    return len(list(cache.glob("catalogue/*/views/*")))


def only(cache: Path, pattern: str) -> Path:
    """The one file of the catalogue with a name."""
    (file,) = cache.glob(f"catalogue/*/{pattern}")
    return file


async def info(opened: Opened, path: str) -> dict[str, object]:
    name = f"{path}/.idc/info.json".lstrip("/")
    content = await opened.read(name)
    node = await opened.node(name)
    assert (node.size, node.permanent, node.is_folder) == (len(content), False, False)
    assert await opened.read(name, 3, 10) == content[3:13]
    return dict(json.loads(content))


async def test_info_tells_of_each_level_what_is_of_that_level(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        root, collection, patient, study, series = [await info(opened, path) for path in below(path_of(SMALL))]
        common = {"idc_version": 3, "released": "2021-07-13", "layout": DEFAULT_TEMPLATE}
        of_patient = {"collection_id": "nlst", "PatientID": "100001", "PatientSex": "F"}
        of_study = {"StudyInstanceUID": SMALL.study, "StudyDate": "1999-12-31", "StudyDescription": "Thorax"}
        assert root == {**common, "path": "", "folders": 3, "series": 8}
        assert collection == {**common, "path": "nlst", "folders": 2, "series": 3, "collection_id": "nlst"}
        assert patient == {**common, "path": "nlst/100001", "folders": 1, "series": 2, **of_patient}
        path = f"nlst/100001/{SMALL.study}"
        assert study == {**common, "path": path, "folders": 2, "series": 2, **of_patient, **of_study}
        assert series["path"] == path_of(SMALL)
        assert (series["folders"], series["series"]) == (0, 1)
        assert (series["bucket"], series["crdc_series_uuid"]) == ("idc-open-data", SMALL.uuid)
        record = {name: value for name, value in SMALL.record().items() if value is not None}
        assert {name: series[name] for name in record} == record
        assert "PatientAge" not in series
        assert store.requests == []


async def test_views_of_the_past_are_listed_without_building_and_built_when_entered(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        versions = await opened.node(".idc/versions")
        assert list(await opened.entries(versions.inode)) == [b"v1", b"v2", b"v3"]
        old = await opened.node(".idc/versions/v1")
        assert old.is_folder
        assert views(cache) == 1
        assert await opened.names(".idc/versions/v1/nlst") == ["100001", "a b=c"]
        assert views(cache) == 2
        path = f".idc/versions/v1/{path_of(EARLIER)}/{instances(EARLIER)[0].name}"
        assert await opened.read(path) == instances(EARLIER)[0].content
        assert (await info(opened, ".idc/versions/v1"))["released"] == "2020-06-01"
        assert (await opened.node(".idc/versions/v1/nlst")).modified_ns == 1_590_969_600 * SECONDS
        with pytest.raises(NotFound):
            await opened.node(".idc/versions/v9")
        one = f"{path_of(SMALL)}/{instances(SMALL)[0].name}"
        assert await opened.node(one) == await opened.node(f".idc/versions/v1/{one}"), "one page cache for both"


async def test_other_views(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names(".idc/analysis_results") == ["Nuclei"]
        assert await opened.names(".idc/analysis_results/Nuclei/nlst/100001") == [REPORT.study]
        assert await opened.names(".idc/by-uuid") == sorted(row.uuid for row in (*ALL, *PRIOR))
        assert await opened.names(f".idc/by-uuid/{SMALL.uuid}") == [instance.name for instance in instances(SMALL)]
        assert (await info(opened, f".idc/by-uuid/{SPACES.uuid}"))["PatientID"] == "a b=c"
        earlier = await info(opened, f".idc/by-uuid/{EARLIER.uuid}")
        assert (earlier["min_idc_version"], earlier["max_idc_version"]) == (1, 1)


async def test_other_layouts(cache: Path, index: Index, store: MemoryStore) -> None:
    layout = "%Modality/%collection_id-%PatientID"
    async with open_filesystem(cache, index, store, layout=layout) as opened:
        assert await opened.names("") == ["CT", "SM", "SR", "cohorts"]
        assert await opened.names("SM") == ["tcga-slide"]
        assert await opened.names("SM/tcga-slide") == [instances(SLIDE)[0].name]
        told = await info(opened, "CT")
        assert (told["Modality"], told["layout"], told["series"]) == ("CT", layout, 6)
        assert "collection_id" not in told


async def test_extended_attributes_are_of_the_level(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:

        async def attributes(path: str) -> dict[str, str]:
            inode = (await opened.node(path)).inode
            found = await opened.filesystem.xattrs(inode)
            for name, value in found.items():
                assert await opened.filesystem.xattr(inode, name) == value
            for name in ("security.capability", "user.idc.nothing", "user.other", "collection_id"):
                with pytest.raises(NoSuchAttribute):
                    await opened.filesystem.xattr(inode, name)
            return {name.removeprefix("user.idc."): value for name, value in found.items()}

        assert await attributes("") == {}
        assert await attributes(".idc") == {}
        assert await attributes("nlst") == {"collection_id": "nlst"}
        assert (await attributes("nlst/100001"))["PatientSex"] == "F"
        assert (await attributes(f"nlst/100001/{SMALL.study}"))["StudyDate"] == "1999-12-31"
        series = await attributes(path_of(SMALL))
        assert (series["instanceCount"], series["SeriesDescription"]) == ("3", "a/b")
        name = instances(SPACES)[0].name
        etag = store.objects["idc-open-data-two"][f"{SPACES.uuid}/{name}"].etag
        assert await attributes(f"{path_of(SPACES)}/{name}") == {
            "bucket": "idc-open-data-two", "key": f"{SPACES.uuid}/{name}", "etag": etag
        }  # fmt: skip


async def test_totals_and_status(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        counts = opened.catalogue.counts
        assert counts["bytes"] == sum(sum(row.sizes) for row in ALL)
        assert counts["instances"] == sum(len(row.sizes) for row in ALL) + 7, "the index has nine for one with two"
        file = instances(SMALL)[0]
        path = f"{path_of(SMALL)}/{file.name}"
        handle = await opened.open((await opened.node(path)).inode)
        await opened.filesystem.files[handle].read(0, 100)
        await opened.filesystem.files[handle].read(100, 100)
        status = json.loads(await opened.read(".idc/status.json"))
        assert (status["mirror"], status["idc_version"], status["open_files"]) == ("aws", 3, 1)
        assert (status["bytes_served"], status["listings_fetched"]) == (200, 1)
        assert status["hit_rate"] == 0, "what was just fetched is no hit"
        assert status["cache"]["objects"]["limit"] == 1 << 30
        assert status["cache"]["objects"]["failure"] is None
        metrics = (await opened.read(".idc/metrics")).decode()
        assert "\nidcfs_bytes_served_total 200\n" in metrics
        assert "\nidcfs_listings_fetched_total 1\n" in metrics
        await opened.filesystem.release_file(handle)
        assert json.loads(await opened.read(".idc/status.json"))["open_files"] == 0


@pytest.mark.parametrize("level", [1, 3, 4])
async def test_a_catalogue_that_is_damaged_while_open_is_repaired(
    cache: Path, index: Index, store: MemoryStore, level: int
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        before = {path: (await opened.node(path)).inode for path in below(path_of(SMALL))}
        before_names = await opened.names(path_of(SMALL))
    async with open_filesystem(cache, index, store) as opened:
        file = only(cache, f"views/*/level{level}.arrow")
        file.write_bytes(b"\xff" * file.stat().st_size)
        with pytest.raises(CatalogueDamaged):
            await opened.node(path_of(SMALL))
        await opened.filesystem.repair()
        assert {path: (await opened.node(path)).inode for path in below(path_of(SMALL))} == before
        assert await opened.names(path_of(SMALL)) == before_names


@pytest.mark.parametrize("length", [0, 100, -50])
async def test_damaged_attributes_are_repaired(cache: Path, index: Index, store: MemoryStore, length: int) -> None:
    file = only(cache, "attributes.parquet")
    file.write_bytes(file.read_bytes()[:length])
    async with open_filesystem(cache, index, store) as opened:
        with pytest.raises(CatalogueDamaged):
            await opened.read("nlst/.idc/info.json")
        await opened.filesystem.repair()
        assert (await info(opened, "nlst"))["collection_id"] == "nlst"


async def test_attributes_asked_by_many_at_once(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened, trio.open_nursery() as nursery:

        async def ask(row: Row) -> None:
            assert (await info(opened, path_of(row)))["crdc_series_uuid"] == row.uuid

        for row in ALL * 3:
            nursery.start_soon(ask, row)


async def test_a_series_that_is_nowhere_and_one_that_lacks_instances(
    cache: Path, index: Index, store: MemoryStore, warnings_logged: WarningsLogged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "REMEMBERED_INSTANCES", 1)
    async with open_filesystem(cache, index, store) as opened:
        with pytest.raises(NotFound, match=MISSING.uuid):
            await opened.names(path_of(MISSING))
        asked = [request.bucket for request in store.requests if MISSING.uuid in request.key]
        assert asked == ["idc-open-data", "idc-open-data-two", "idc-open-data-cr"]
        assert await opened.names(path_of(SHORT)) == [instance.name for instance in instances(SHORT)]
        warnings_logged.take("lists 2 instances, the index says 9")
        # This mount stays with what it has shown, whatever there is now.
        store.put("idc-open-data", f"{SHORT.uuid}/0.dcm", b"new")
        await opened.names(path_of(SMALL))
        assert len(await opened.names(path_of(SHORT))) == 2
    store.requests.clear()
    async with open_filesystem(cache, index, store) as opened:
        assert len(await opened.names(path_of(SHORT))) == 3
        warnings_logged.take("lists 3 instances, the index says 9")
        assert len([request for request in store.requests if SHORT.uuid in request.key]) == 2
        with pytest.raises(NotFound):
            await opened.names(path_of(MISSING))


def test_numbers_of_control_files_are_none_of_folders() -> None:
    facets = [*Facet, *CONTROL_FILES.providers]
    assert len({pack_folder(0, 0, 0, facet) for facet in facets}) == len(facets)
    assert pack_folder(0, 0, 0) == ROOT


def test_numbers_of_control_files_stay_what_they_are() -> None:
    numbers = {
        name: address(FolderAddress(0, 0, 0, Facet.CONTROL)) for name, (_, address) in CONTROL_FILES.entries.items()
    }
    known = {b"info.json": 2, b"status.json": 3, b"metrics": 4, b"versions": 5, b"analysis_results": 6}
    assert {name: numbers[name].facet for name in known} == known
