"""One index for all tests, its catalogue built once, and a fresh cache and store for each."""

import shutil
from pathlib import Path

import pytest
import trio

from idcfs.catalog.catalogue import open_catalogue
from idcfs.catalog.index import Index
from tests.filesystem import rows
from tests.index_factory import fill_store, make_index
from tests.memory_store import MemoryStore


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_index(tmp_path_factory.mktemp("index"), rows.ALL, rows.PRIOR)


@pytest.fixture(scope="session")
def built(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")

    async def build() -> None:
        async with open_catalogue(folder, index) as catalogue:
            await catalogue.attributes_file()

    trio.run(build)
    return folder


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "cache"))


@pytest.fixture
def store() -> MemoryStore:
    return fill_store(MemoryStore(), [row for row in (*rows.ALL, *rows.PRIOR) if row is not rows.MISSING])
