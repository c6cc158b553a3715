"""The tables that idc-index has fetched for the user, which queries may read as well."""

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idcfs.catalog.index import Index, find_index
from idcfs.catalog.messages import Bound, Query
from idcfs.processes.child import run_program
from idcfs.processes.messages import Done
from tests.index_factory import Row, make_index


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to which idc-index downloads tables."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "idc_index_data" / version("idc-index-data")


def write_table(file: Path, value: str = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"value": [value]}), file)
    return file


def test_tables_that_idc_index_has_fetched_are_found_by_their_names(fetched: Path) -> None:
    assert find_index().fetched == {}
    file = write_table(fetched / "sm_index.parquet")
    (fetched / "half.parquet.part").touch()
    index = find_index()
    assert index.fetched == {"sm_index": file}
    assert index.query_tables["sm_index"] == str(file)
    assert set(index.query_tables) == {"sm_index", *index.tables}


def test_tables_that_were_fetched_for_another_version_are_not_used(fetched: Path) -> None:
    write_table(fetched.with_name("1.0.0") / "sm_index.parquet")
    write_table(fetched.parent / "seg_index.parquet")
    assert find_index().fetched == {}


def test_an_index_in_a_folder_has_that_folders_tables_only(fetched: Path, tmp_path: Path) -> None:
    write_table(fetched / "sm_index.parquet")
    make_index(tmp_path / "index", [Row()])
    own = write_table(tmp_path / "index" / "own_index.parquet")
    index = find_index(tmp_path / "index")
    assert index.fetched == {}
    assert index.query_tables["own_index"] == str(own)


def test_an_installed_table_is_preferred_to_a_fetched_one_of_the_same_name(fetched: Path) -> None:
    write_table(fetched / "collections_index.parquet")
    index = find_index()
    assert index.query_tables["collections_index"] == str(index.tables["collections_index"])


async def test_a_query_reads_a_fetched_table(fetched: Path, tmp_path: Path) -> None:
    write_table(fetched / "sm_index.parquet", "seen")
    result = tmp_path / "result"
    request = Query(find_index().query_tables, 3 << 30, "FROM sm_index", None, str(result))
    await run_program("idcfs.catalog.query", request, Done, [Bound])
    assert pa.ipc.open_stream(pa.memory_map(str(result))).read_all().to_pylist() == [{"value": "seen"}]


def touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def resize(file: Path) -> None:
    write_table(file, "another value, of another length")


def rename(file: Path) -> None:
    file.rename(file.with_name("other_index.parquet"))


@pytest.mark.parametrize("change", [touch, resize, rename, Path.unlink])
def test_a_changed_fetched_table_changes_the_fingerprint_of_queries_only(
    fetched: Path, change: Callable[[Path], None]
) -> None:
    bare = find_index()
    file = write_table(fetched / "sm_index.parquet")
    before = find_index()
    again = find_index()
    assert again.query_fingerprint == before.query_fingerprint != bare.query_fingerprint
    was = before.query_fingerprint
    change(file)
    after = find_index()
    assert after.query_fingerprint != was
    assert after.fingerprint == before.fingerprint == bare.fingerprint


def test_a_changed_installed_table_changes_both_fingerprints(tmp_path: Path) -> None:
    index = make_index(tmp_path, [Row()])
    before = index.fingerprint, index.query_fingerprint
    touch(tmp_path / "collections_index.parquet")
    after = Index(index.folder, index.tables)
    assert after.fingerprint != before[0]
    assert after.query_fingerprint != before[1]
