import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from idcfs.catalog.catalogue import (
    ANALYSIS_RESULT_GENERATIONS,
    BY_UUID_GENERATION,
    MAIN_GENERATION,
    VERSION_GENERATIONS,
    Catalogue,
    open_catalogue,
)
from idcfs.catalog.description import FORMAT
from idcfs.catalog.index import Index
from idcfs.catalog.view import View
from idcfs.errors import CacheUnusable, IndexUnusable, NotFound, UsageError
from tests.index_factory import PriorRow, Row, build_catalogue, make_index
from tests.mounting import ORDINARY_USER, needs_another_user

ROWS = [Row("a", "p1"), Row("a", "p2", revised=2), Row("b", "p3", revised=3, analysis_result="Nuclei")]
PRIOR = [PriorRow("a", "p2", first=1, last=1)]

Tree = dict[tuple[bytes, ...], tuple[int, str]]


def tree(catalogue: Catalogue, view: View | None) -> Tree:
    """Return the group and UUID of every series by path."""
    assert view is not None
    return {
        tuple(view.path(view.depth, group)): (group, catalogue.series(view.series_row(group)).uuid)
        for group in view.series_groups(0, 0)
    }


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_index(tmp_path_factory.mktemp("index"), ROWS, PRIOR)


@pytest.fixture(scope="module")
def built(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that has the catalogue."""
    return build_catalogue(tmp_path_factory.mktemp("built"), index)


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    """A copy of that cache folder."""
    return Path(shutil.copytree(built, tmp_path / "cache"))


async def test_a_catalogue_that_was_built_opens_without_a_build(cache: Path, index: Index) -> None:
    steps: list[str] = []
    async with open_catalogue(cache, index, report=steps.append) as catalogue:
        assert steps == []
        assert catalogue.version == catalogue.mount_version == 3
        assert catalogue.counts["series"] == 3
        found = tree(catalogue, catalogue.view(MAIN_GENERATION))
    assert [path[:2] for path in found] == [(b"a", b"p1"), (b"a", b"p2"), (b"b", b"p3")]
    assert [uuid for _, uuid in found.values()] == [row.uuid for row in ROWS]


Damage = Callable[[Path], Path]
"""Damages a file of the catalogue in a cache folder and returns its path below it."""


def spoil(file: str, change: Callable[[bytes], bytes]) -> Damage:
    def spoil_it(cache: Path) -> Path:
        (path,) = cache.glob(f"catalogue/*/{file}")
        path.write_bytes(change(path.read_bytes()))
        return path.relative_to(cache)

    spoil_it.__name__ = f"spoil {file}"
    return spoil_it


def other_format(description: bytes) -> bytes:
    return json.dumps({**json.loads(description), "format": 0}).encode()


def other_bucket(description: bytes) -> bytes:
    return description.replace(b"idc-open-data", b"idc-open-dada")


@pytest.mark.parametrize(
    "damage",
    [
        spoil("contents.json", lambda data: data[:-9]),
        spoil("contents.json", lambda data: b""),
        spoil("contents.json", lambda data: b"[1]"),
        spoil("contents.json", other_format),
        spoil("contents.json", other_bucket),
        spoil("series.arrow", lambda data: data[:-20]),
        spoil("views/*/view.json", other_format),
        spoil("views/*/level3.arrow", lambda data: b"x" * len(data)),
        spoil("views/*/level4.arrow", lambda data: data[:100]),
    ],
)
async def test_a_damaged_file_is_built_again_with_the_same_numbers(
    built: Path, cache: Path, index: Index, damage: Damage
) -> None:
    async with open_catalogue(built, index) as catalogue:
        expected = tree(catalogue, catalogue.view(MAIN_GENERATION))
        rows = [catalogue.series(row) for row in range(catalogue.series_rows)]
    damaged = damage(cache)
    async with open_catalogue(cache, index) as catalogue:
        assert tree(catalogue, catalogue.view(MAIN_GENERATION)) == expected
        assert [catalogue.series(row) for row in range(catalogue.series_rows)] == rows
    assert (cache / damaged).read_bytes() == (built / damaged).read_bytes()
    async with open_catalogue(cache, index, report=lambda step: pytest.fail("it was built a second time")):
        pass


async def test_leftovers_of_killed_builds_do_no_harm_and_are_removed(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    name = f"{index.fingerprint}-{FORMAT}"
    leftover = folder / f"{name}.123.building"
    leftover.mkdir(parents=True)
    (leftover / "contents.json").write_text("{}")
    (folder / f"{name}.lock").touch()
    mine = folder / f"{name}.{os.getpid()}.building" / "views"
    mine.mkdir(parents=True)
    (folder / name / "views").mkdir(parents=True)
    (folder / name / "series.partial").write_text("cut")
    async with open_catalogue(tmp_path, index) as catalogue:
        assert len(tree(catalogue, catalogue.view(MAIN_GENERATION))) == 3
    assert sorted(path.name for path in folder.iterdir()) == [name, f"{name}.lock"]


OPEN = """
import sys, trio
from pathlib import Path
from idcfs.catalog.catalogue import open_catalogue
from idcfs.catalog.index import find_index
from idcfs.errors import IdcfsError

async def main():
    async with open_catalogue(Path(sys.argv[1]), find_index(Path(sys.argv[2])), report=print) as catalogue:
        print(len(catalogue.view(0).series_groups(0, 0)), "series")

try:
    trio.run(main)
except IdcfsError as error:
    print(type(error).__name__, error)
"""


def start(cache: Path, index: Index, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", OPEN, str(cache), str(index.folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]  # options of any kind


def test_two_processes_that_open_a_catalogue_at_once_build_it_once(tmp_path: Path, index: Index) -> None:
    opened = [start(tmp_path, index) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0].splitlines() for process in opened]
    assert [lines[-1] for lines in printed] == ["3 series", "3 series"]
    assert sum("reading the index" in lines for lines in printed) == 1


@needs_another_user
def test_a_cache_folder_that_cannot_be_written_is_refused(index: Index) -> None:
    home = Path("/tmp") / f"idcfs-test-{os.getpid()}"
    home.mkdir(mode=0o755)
    try:
        copy = shutil.copytree(index.folder, home / "index")
        copy.chmod(0o755)
        cache = home / "cache"
        cache.mkdir(mode=0o755)
        process = start(cache, Index(copy, {}), user=ORDINARY_USER, group=ORDINARY_USER, extra_groups=[], cwd=home)
        line = process.communicate(timeout=60)[0].strip()
    finally:
        shutil.rmtree(home)
    assert line.startswith(f"CacheUnusable cache folder {cache}/catalogue: Permission denied")
    assert "--cache-dir" in line


async def test_a_file_where_the_cache_folder_should_be_is_refused(tmp_path: Path, index: Index) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheUnusable, match="--cache-dir"):
        async with open_catalogue(tmp_path / "file", index):
            pass


async def test_a_version_that_is_not_in_the_index_is_refused(cache: Path, index: Index) -> None:
    with pytest.raises(UsageError, match="IDC version 4 is not in the installed index, which has versions 1 to 3"):
        async with open_catalogue(cache, index, version=4):
            pass


async def test_a_wrong_layout_is_refused(cache: Path, index: Index) -> None:
    with pytest.raises(UsageError, match="%Nothing is no column"):
        async with open_catalogue(cache, index, "%PatientID/%Nothing"):
            pass


async def test_an_error_of_the_child_is_raised(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", ROWS)
    (tmp_path / "index" / "idc_index.parquet").write_bytes(b"garbage")
    with pytest.raises(IndexUnusable, match="not readable"):
        async with open_catalogue(tmp_path / "cache", index):
            pass
    assert not list((tmp_path / "cache" / "catalogue").glob("*.building"))


async def test_an_earlier_version_with_another_layout_beside_todays_tree(cache: Path, index: Index) -> None:
    async with open_catalogue(cache, index, "%PatientID", version=1) as catalogue:
        assert catalogue.mount_version == 1
        assert catalogue.version == 3
        assert {path: uuid for path, (_, uuid) in tree(catalogue, catalogue.view(0)).items()} == {
            (b"p1",): ROWS[0].uuid,
            (b"p2",): PRIOR[0].uuid,
        }
    async with open_catalogue(cache, index, report=lambda step: pytest.fail("the other tree is gone")) as catalogue:
        assert len(tree(catalogue, catalogue.view(0))) == 3


async def test_views_are_built_when_first_opened(cache: Path, index: Index) -> None:
    async with open_catalogue(cache, index) as catalogue:
        wanted = {
            VERSION_GENERATIONS + 1: {ROWS[0].uuid, PRIOR[0].uuid},
            ANALYSIS_RESULT_GENERATIONS: {ROWS[2].uuid},
            BY_UUID_GENERATION: {row.uuid for row in (*ROWS, *PRIOR)},
        }
        for generation, uuids in wanted.items():
            assert catalogue.view(generation) is None
            view = await catalogue.open_view(generation)
            assert {uuid for _, uuid in tree(catalogue, view).values()} == uuids
            assert await catalogue.open_view(generation) is view
        with pytest.raises(NotFound):
            await catalogue.open_view(VERSION_GENERATIONS + 9)
    async with open_catalogue(cache, index, report=lambda step: pytest.fail("it was built before")) as catalogue:
        await catalogue.open_view(VERSION_GENERATIONS + 1)


async def test_callers_that_find_damage_at_the_same_time_share_one_repair(cache: Path, index: Index) -> None:
    steps: list[str] = []
    async with open_catalogue(cache, index, report=steps.append) as catalogue:
        expected = tree(catalogue, catalogue.view(MAIN_GENERATION))
        version = tree(catalogue, await catalogue.open_view(VERSION_GENERATIONS + 1))
        steps.clear()
        spoil("series.arrow", lambda data: b"x" * len(data))(cache)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(catalogue.repair)
        assert steps.count("reading the index") == 1
        assert tree(catalogue, catalogue.view(MAIN_GENERATION)) == expected
        assert tree(catalogue, catalogue.view(VERSION_GENERATIONS + 1)) == version
        await catalogue.repair()
        assert steps.count("reading the index") == 2
