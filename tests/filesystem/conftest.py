"""One index for all tests, its catalogue built once, and a fresh cache and store for each."""

import shutil
from pathlib import Path

import pytest

from idcfs.catalog.index import Index
from tests.filesystem import rows
from tests.index_factory import build_catalogue, fill_store, make_index
from tests.memory_store import MemoryStore


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_index(tmp_path_factory.mktemp("index"), rows.ALL, rows.PRIOR)


@pytest.fixture(scope="session")
def built(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_catalogue(tmp_path_factory.mktemp("built"), index)


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "cache"))


@pytest.fixture
def store() -> MemoryStore:
    return fill_store(MemoryStore(), [row for row in (*rows.ALL, *rows.PRIOR) if row is not rows.MISSING])
