"""Users' SQL in its sandbox: what it may do, and sixty attempts to do more."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from idcfs.catalog.index import find_index
from idcfs.catalog.messages import Bound, Query
from idcfs.errors import ChildEnded, IdcfsError, QueryRefused
from idcfs.processes.child import run_program
from idcfs.processes.messages import Decoder, Done, Message
from tests.index_factory import Row, make_index
from tests.processes import children_of, started

MEMORY = 3 << 30
TABLES = {name: str(path) for name, path in find_index().tables.items()}
INDEX = TABLES["index"]


async def ask(
    folder: Path, sql: str, seconds: float = 30, limit: int | None = 100, tables: dict[str, str] = TABLES
) -> list[dict[str, Any]]:
    import pyarrow as pa

    result = folder / "result.arrow"
    reported: list[Message] = []
    with trio.fail_after(seconds):
        request = Query(tables, MEMORY, sql, limit, str(result))
        await run_program("idcfs.catalog.query", request, Done, [Bound], reported.append)
    assert reported == [Bound()]
    rows: list[dict[str, Any]] = pa.ipc.open_stream(pa.memory_map(str(result))).read_all().to_pylist()
    return rows


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT count(*) AS n FROM index", [{"n": 1044191}]),
        ("-- a comment\nSELECT count(*) AS n FROM collections_index;", [{"n": 179}]),
        ("WITH one AS (SELECT 1 AS n) SELECT n FROM one", [{"n": 1}]),
        ("(SELECT 1 AS n)", [{"n": 1}]),
        ("FROM version_metadata_index SELECT max(idc_version) AS n", [{"n": 25}]),
        (
            "SELECT count(*) AS n FROM prior_versions_index p JOIN index i USING (SeriesInstanceUID) WHERE false",
            [{"n": 0}],
        ),
        ("SELECT '/* ; */ -- ;' AS n", [{"n": "/* ; */ -- ;"}]),
    ],
)
async def test_a_select_over_the_index_is_answered(tmp_path: Path, sql: str, rows: list[dict[str, Any]]) -> None:
    assert await ask(tmp_path, sql) == rows


async def test_a_refusal_has_the_number_of_the_line(tmp_path: Path) -> None:
    for sql in ("-- one\n-- two\nSELECT PatientID\nFROM index WHERE Modalty = 'CT'", "\n\nSELECT\n1 FROM nothing"):
        with pytest.raises(QueryRefused, match=r"(?m)^LINE 4: (FROM index WHERE Modalty|1 FROM nothing)"):
            await ask(tmp_path, sql)


async def test_a_limit_bounds_the_rows(tmp_path: Path) -> None:
    assert len(await ask(tmp_path, "SELECT * FROM index", limit=7)) == 7


HOSTILE = [
    # Files.
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '{index}.copy'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_parquet('/etc/*')",
    "SELECT * FROM read_parquet('{folder}/../*/*.parquet')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM parquet_metadata('/etc/passwd')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT content FROM read_text('/proc/self/environ')",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "WITH a AS (SELECT * FROM read_csv('/etc/passwd')) SELECT * FROM a",
    "SELECT * FROM index WHERE PatientID IN (SELECT content FROM read_text('/etc/hostname'))",
    "COPY index TO '{cwd}/stolen.csv'",
    "COPY (SELECT 1) TO '{cwd}/stolen.parquet' (FORMAT parquet)",
    "COPY index FROM '/etc/passwd'",
    "EXPORT DATABASE '{cwd}/stolen'",
    "IMPORT DATABASE '{cwd}/stolen'",
    "ATTACH '{cwd}/stolen.db'",
    "ATTACH ':memory:' AS other",
    "DETACH memory",
    "USE memory",
    # The network and extensions.
    "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
    "SELECT * FROM 'https://127.0.0.1:9/x.parquet'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{cwd}/evil.duckdb_extension'",
    "FORCE INSTALL sqlite",
    "SELECT * FROM sqlite_scan('{cwd}/x.db', 'x')",
    "SELECT * FROM postgres_scan('', '', '')",
    # Settings and the catalogue.
    "SET threads = 64",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET lock_configuration = false",
    "SET memory_limit = '100GB'",
    "SET temp_directory = '/tmp'",
    "PRAGMA threads = 64",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "SHOW TABLES",
    "DESCRIBE index",
    "SUMMARIZE index",
    "EXPLAIN SELECT 1",
    "CREATE TABLE x AS SELECT 1",
    "CREATE TEMP TABLE x AS SELECT 1",
    "CREATE VIEW x AS SELECT 1",
    "CREATE MACRO f(x) AS x",
    "CREATE SECRET s (TYPE s3)",
    "DROP VIEW index",
    "DELETE FROM index",
    "UPDATE index SET PatientID = 'x'",
    "INSERT INTO index SELECT * FROM index",
    "ALTER TABLE index ADD COLUMN x INT",
    "BEGIN TRANSACTION",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE q AS SELECT 1",
    # Several statements, and none.
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW index",
    "SELECT 1 /* */; /* */ COPY index TO '{cwd}/stolen.csv'",
    "SELECT 1; -- \n SET threads = 64",
    "/* SELECT 1 */ COPY index TO '{cwd}/stolen.csv'",
    "",
    "   ",
    "-- only a comment",
    "/* never ends",
    # Nonsense.
    "SELEC 1",
    "SELECT nothing FROM index",
    "SELECT * FROM nothing",
    "SELECT * FROM tables_of_python",
    "SELECT 'never ends",
    "SELECT \0 1",
    "SELECT " + "abs(" * 5000 + "1" + ")" * 5000,
    "SELECT getenv('HOME')",
    "SELECT 1 FROM index WHERE",
    "\ufeff\u202e SELECT",
    "DROP TABLE IF EXISTS students; --",
    "SELECT error('on purpose')",
    "SELECT CAST('x' AS INTEGER)",
]


def running_queries() -> list[int]:
    """The queries that are children of this process."""
    return children_of(os.getpid(), "idcfs.catalog.query")


def hostile_text(template: str, cwd: Path) -> str:
    for name, value in (("{index}", INDEX), ("{folder}", os.path.dirname(INDEX)), ("{cwd}", str(cwd))):
        template = template.replace(name, value)
    return template


@pytest.mark.parametrize("template", HOSTILE)
async def test_anything_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    monkeypatch.chdir(work)
    with pytest.raises(QueryRefused):
        await ask(out, hostile_text(template, work))
    assert list(work.iterdir()) == []
    assert [path.name for path in out.iterdir() if path.stat().st_size] == []


WRITING = [
    "COPY (SELECT 1 AS a) TO '{index}' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY (SELECT 1 AS a) TO '{index}' (FORMAT csv, USE_TMP_FILE false)",
    "COPY index TO '{index}.copy' (FORMAT parquet)",
    "INSERT INTO index SELECT * FROM index",
    "UPDATE index SET PatientID = 'x'",
    "DELETE FROM index",
]
"""Statements that newer versions of DuckDB accept in a WITH."""


@pytest.mark.parametrize("form", ["WITH x AS ({}) SELECT 1 AS a", "SELECT * FROM (WITH x AS ({}) SELECT 1 AS a)"])
@pytest.mark.parametrize("writing", WRITING)
async def test_a_with_that_writes_is_refused(tmp_path: Path, writing: str, form: str) -> None:
    # An index of its own, so that a failure does not damage the installed one.
    rows = [Row("nlst", "p1"), Row("nlst", "p2")]
    tables = {name: str(path) for name, path in make_index(tmp_path / "index", rows).tables.items()}
    before = {path: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    sql = form.format(writing.replace("{index}", tables["index"]))
    with pytest.raises(QueryRefused):
        await ask(tmp_path, sql, tables=tables)
    assert {path: path.read_bytes() for path in (tmp_path / "index").iterdir()} == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 2000000000) AS a, repeat('y', 2000000000) AS b",
        "SELECT list(repeat(PatientID, 1000)) FROM index",
        "SELECT count(*) FROM (SELECT DISTINCT a.SeriesInstanceUID || b.SeriesInstanceUID FROM index a, index b)",
        "SELECT * FROM range(1000000000) t(a) ORDER BY hash(a)",
        "SELECT " + ", ".join(f"PatientID || {number} AS c{number}" for number in range(30000)) + " FROM index",
    ],
    ids=["strings", "a list", "a cross join", "a sort", "columns"],
)
async def test_memory_is_bounded(tmp_path: Path, sql: str) -> None:
    """The query is refused, killed or out of time, and this process goes on."""
    with pytest.raises((QueryRefused, ChildEnded, trio.TooSlowError)):
        await ask(tmp_path, sql, seconds=8, limit=None)


async def test_time_is_bounded_and_the_child_ends(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE a(n) AS (SELECT 1 UNION ALL SELECT 1 - n FROM a) SELECT count(*) FROM a"
    with pytest.raises((trio.TooSlowError, IdcfsError)):
        await ask(tmp_path, endless, seconds=2)
    assert not running_queries()


def test_a_query_ends_with_its_parent(tmp_path: Path) -> None:
    sql = "SELECT count(*) FROM range(100000000000)"
    request = Query(TABLES, MEMORY, sql, None, str(tmp_path / "r"))
    with started("idcfs.catalog.query", request) as (child, connection):
        assert Decoder([Bound]).feed(connection.recv(1000)) == [(0, False, Bound())]
        connection.close()
        assert child.wait(60) == 1
