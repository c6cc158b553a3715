"""The queries of docs/cohorts.md on the real index: DuckDB and the text agree on their series."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest

from idcfs.catalog.index import find_index
from tests.mounting import Commands

DOCUMENT = Path(__file__).parents[2] / "docs" / "cohorts.md"

QUERY = re.compile(
    r"^### `(?P<name>\w+)`: [^\n]+\n\n(?P<prose>(?:(?!#|```)[^\n]*\n)+?)\n```sql\n(?P<sql>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
STATED = re.compile(r"\*\*([\d,]+) series\.\*\*")

NARROWED = {
    "crdc_series_uuid": [],
    "SeriesInstanceUID": [],
    "StudyInstanceUID": ["PatientID", "collection_id"],
    "PatientID": ["collection_id"],
    "collection_id": [],
}
"""The document's table of the columns that select series, the most specific first."""


class Documented(NamedTuple):
    """A query of the document, and its number of series in the text."""

    name: str
    sql: str
    series: int


def documented() -> list[Documented]:
    found = []
    for match in QUERY.finditer(DOCUMENT.read_text()):
        (number,) = STATED.findall(match["prose"])
        found.append(Documented(match["name"], match["sql"], int(number.replace(",", ""))))
    return found


@pytest.fixture(scope="module")
def index() -> Any:
    """DuckDB on the index's files, without any code of idcfs."""
    connection = duckdb.connect()
    for name, path in find_index().tables.items():
        connection.execute(f"CREATE VIEW \"{name}\" AS SELECT * FROM read_parquet('{path}')")
    connection.execute("""
        CREATE VIEW every_version AS SELECT crdc_series_uuid, collection_id FROM index
        UNION SELECT crdc_series_uuid, collection_id FROM prior_versions_index""")
    return connection


def meant(index: Any, sql: str) -> str:
    """The SQL of the series that the rows of *sql* select."""
    columns = [column[0] for column in index.execute(f"SELECT * FROM ({sql}) LIMIT 0").description]
    first = next(name for name in NARROWED if name in columns)
    using = ", ".join([first, *(name for name in NARROWED[first] if name in columns)])
    table = "every_version" if first == "crdc_series_uuid" else "index"
    return f"(SELECT DISTINCT crdc_series_uuid, collection_id FROM {table} SEMI JOIN ({sql}) USING ({using}))"


def series_by_collection(index: Any, sql: str) -> dict[str, int]:
    rows = index.execute(f"SELECT collection_id, count(DISTINCT crdc_series_uuid) FROM {meant(index, sql)} GROUP BY 1")
    return dict(rows.fetchall())


def test_the_document_has_ten_queries() -> None:
    assert len({query.name for query in documented()}) == 10
    assert DOCUMENT.read_text().count("```sql") == 10


@pytest.mark.parametrize("query", documented(), ids=lambda query: query.name)
def test_a_documented_query_selects_the_documented_series(
    query: Documented, commands: Commands, tmp_path: Path, index: Any
) -> None:
    file = tmp_path / "query.sql"
    file.write_text(query.sql)
    made = commands.idcfs("cohort", "create", query.name, "--file", file)
    assert made.returncode == 0, made.stderr
    shown = json.loads(commands.idcfs("cohort", "show", query.name, "--json").stdout)
    assert (shown["error"], shown["remarks"]) == ("", "")
    counts = series_by_collection(index, query.sql)
    assert shown["summary"]["series"] == sum(counts.values()) == query.series
    assert shown["summary"]["collections"] == sorted(counts)


def test_a_mount_lists_the_collections_of_documented_queries(
    commands: Commands, folder_mirror: Path, index: Any
) -> None:
    queries = [query for query in documented() if "-- layout:" not in query.sql]
    assert len(queries) >= 4
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        for query in queries:
            cohort = point / "cohorts" / query.name
            cohort.mkdir()
            (cohort / ".query").write_text(query.sql)
            listed = sorted(path.name for path in cohort.iterdir())
            assert listed == sorted(series_by_collection(index, query.sql)), query.name


def test_a_mount_shows_the_documented_number_of_series(commands: Commands, folder_mirror: Path) -> None:
    queries = {query.name: query for query in documented()}
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        for name, below in (("siemens_pet", "*/*/*/*"), ("nlst_first_ct", "*"), ("kidney_slides", "*/*")):
            cohort = point / "cohorts" / name
            cohort.mkdir()
            (cohort / ".query").write_text(queries[name].sql)
            assert sum(1 for _ in cohort.glob(below)) == queries[name].series, name
