"""The parser of cohorts' texts, and hostile texts, which must reach nothing."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from idcfs.catalog import build as catalogue_build
from idcfs.catalog.catalogue import open_catalogue
from idcfs.catalog.messages import Bound
from idcfs.cohorts import text
from idcfs.cohorts.messages import BuildCohort, Facts
from idcfs.cohorts.results import Results
from idcfs.cohorts.text import MAX_SQL, CohortText, Manifest, parse_text
from idcfs.config import Settings
from idcfs.errors import ChildEnded, QueryRefused, QueryTooLong
from idcfs.layout import DEFAULT_TEMPLATE
from idcfs.processes.child import run_program
from tests.index_factory import Row, make_index, make_uuid
from tests.processes import PATIENCE, children_of
from tests.unit.test_query import HOSTILE, TABLES, hostile_text

UUID = "0123abcd-0000-4000-8000-00000000000f"


def manifest(data: str | bytes) -> Manifest:
    parsed = parse_text(data.encode() if isinstance(data, str) else data)
    assert parsed.sql is None
    assert parsed.manifest is not None
    return parsed.manifest


@pytest.mark.parametrize(
    "line",
    [
        f"s3://idc-open-data/{UUID}/*",
        f"s3://idc-open-data/{UUID}/",
        f"s3://idc-open-data/{UUID}",
        f"gs://idc-open-idc1/{UUID}/*",
        f"cp s3://idc-open-data/{UUID}/* .",
        f"cp s3://idc-open-data/{UUID}/* /home/me/a folder/",
        f'cp "s3://idc-open-data/{UUID}/*" "a folder"',
        f"cp 's3://idc-open-data/{UUID}/*' 'a folder'",
        f'cp --show-progress -n "s3://idc-open-data/{UUID}/*" "dir"',
        f"sync s3://idc-open-data/{UUID}/* .",
        UUID,
        UUID.upper(),
        f"\t {UUID} \t",
        f"s3://idc-open-data/{UUID.upper()}/*",
    ],
)
def test_lines_that_name_a_series_by_its_uuid(line: str) -> None:
    assert manifest(f"{line}\n") == Manifest([(1, UUID)], [], [])


@pytest.mark.parametrize(
    "line",
    [
        "1", "1.", ".1", "1..2", "1.2.a", f"{UUID}0", UUID[:-1], UUID.replace("-", ""), "s3://bucket/", "s3:///" + UUID,
        f"s3://bucket/{UUID}/x.dcm", f"http://bucket/{UUID}/*", f"s3://bucket/prefix/{UUID}/*", "cp", "nonsense",
        f"{UUID},", f"{UUID} {UUID}", "\u0661.\u0662", "\0", "SELECT 1",
    ],
)  # fmt: skip
def test_lines_that_name_no_series(line: str) -> None:
    assert manifest(f"{UUID}\n{line}\n") == Manifest([(1, UUID)], [], [(2, line)])


def test_lines_have_the_numbers_that_an_editor_shows() -> None:
    lines = ["# a\x0cb\x0b", "", "-- c\x1c\x1d\x1e\x85\u2028\u2029", UUID, "x\u2028y", "  ", "1.2.3", "# 1.2"]
    for end in ("\n", "\r\n"):
        for start in (b"", b"\xef\xbb\xbf"):
            found = manifest(start + end.join(lines).encode())
            assert found == Manifest([(4, UUID)], [(7, "1.2.3")], [(5, "x\u2028y")])


def test_a_manifest_with_a_wrong_first_line_is_not_sql() -> None:
    assert manifest(f"series_aws_url\n{UUID}\n") == Manifest([(2, UUID)], [], [(1, "series_aws_url")])


@given(
    st.lists(st.sampled_from([UUID, "1.2.3", "# x", "--", "", " ", "x y", "\x0c", "\u2028 z", "1.2\x0b"]), max_size=30)
)
@example(["x", "1.2.3"])
def test_every_line_of_a_manifest_is_a_series_a_comment_or_unreadable(lines: list[str]) -> None:
    whole = [UUID, *lines]
    found = manifest("\n".join(whole))
    lines_found = sorted([*found.uuids, *found.uids, *found.unreadable])
    assert lines_found == [
        (number, line.strip())
        for number, line in enumerate(whole, start=1)
        if line.strip() and not line.startswith(("#", "--"))
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1", "select\n1", "selecting\nnothing", "\n\n  WITH a AS (FROM b) FROM a", "FROM index", "(SELECT 1)",
        f"/* a */ SELECT\n{UUID}", f"-- {UUID}\nSELECT 1", "SELEC 1", "COPY index TO 'x'", "/etc/passwd", "s3://bucket/*",
        f"SELECT '\n{UUID}\n1.2.3\n' AS crdc_series_uuid", "TABLE index", "VALUES (1)",
    ],
)  # fmt: skip
def test_any_other_text_is_sql_and_stays_unchanged(sql: str) -> None:
    for whole in (sql, sql.replace("\n", "\r\n")):
        assert parse_text(whole.encode()) == CohortText(None, whole, None)
        assert parse_text(b"\xef\xbb\xbf" + whole.encode()) == CohortText(None, whole, None)


@pytest.mark.parametrize("blank", ["", "\n", " \r\n\t\n", "-- only\n# comments\n", "\ufeff", "\x0c\n"])
def test_a_text_of_comments_only_is_neither_sql_nor_a_manifest(blank: str) -> None:
    assert parse_text(blank.encode()) == CohortText(None, None, None)


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        ("-- layout: %PatientID/%Modality\nSELECT 1", "%PatientID/%Modality"),
        ("-- layout: %PatientID \r\nSELECT 1", "%PatientID"),
        ("\ufeff-- layout: a\nSELECT 1", "a"),
        ("\n# a comment\n--layout:a\n-- layout: b\nSELECT 1", "a"),
        ("# layout: a b\n1.2.3", "a b"),
        ("-- layout:\nSELECT 1", ""),
        ("-- layout: a\x0cb\nSELECT 1", "a\x0cb"),
        ("-- layout: a", "a"),
        ("-- the layout: a\nSELECT 1", None),
        ("SELECT 1\n-- layout: a", None),
        ("1.2.3\n# layout: a", None),
        ("/* -- layout: a */ SELECT 1", None),
        ("SELECT '\n-- layout: a'", None),
    ],
)
def test_the_layout_is_in_the_comments_at_the_start(data: str, layout: str | None) -> None:
    assert parse_text(data.encode()).layout == layout


def test_sql_has_a_limit_and_a_manifest_has_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    select = b"SELECT 1 --"
    assert parse_text(select.ljust(MAX_SQL, b"x")).sql is not None
    with pytest.raises(QueryTooLong, match="1,048,577 bytes of SQL; 1,048,576 are the most"):
        parse_text(select.ljust(MAX_SQL + 1, b"x"))
    line = f"s3://idc-open-data/{UUID}/*\n".encode()
    lines = 2 * MAX_SQL // len(line)
    assert len(manifest(line * lines).uuids) == lines
    monkeypatch.setattr(text, "MAX_TEXT", 2 * MAX_SQL)
    with pytest.raises(QueryTooLong, match="at most 2,097,152 bytes"):
        parse_text(line * (lines + 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SELECT '\xff'", "not UTF-8 text .byte 8"),
        (b"\xef\xbb\xbf1.2.3\n\xed\xa0\x80", "not UTF-8 text .byte 9"),
        ("SELECT 1".encode("utf-16"), "not UTF-8 text .byte 0"),
        (b"SELECT 1\n\0\0", "line 2 of the query has a NUL byte"),
        (b"\0", "line 1 of the query has a NUL byte"),
    ],
)
def test_bytes_that_are_not_text_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(QueryRefused, match=message):
        parse_text(data)


@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"cp " + b"-a " * 3000 + b"x\n1.2")
@example(b" " * 20000 + b"x\n1.2")
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        parsed = parse_text(data)
    except QueryRefused:
        return
    assert parsed.sql is None or parsed.manifest is None


# Hostile texts, over the real index and in the child process that a mount uses.

LAYOUT = "-- layout: %PatientID/x\n"

REFUSED: list[str | bytes] = [
    # Files; one of them would define a cohort if it were read.
    "SELECT SeriesInstanceUID FROM read_csv('{cwd}/secret.csv')",
    "SELECT SeriesInstanceUID FROM '{cwd}/secret.csv'",
    "FROM '{cwd}/*.csv'",
    "FROM read_csv('secret.csv')",
    "FROM query('FROM ''{cwd}/secret.csv''')",
    "FROM query_table('{cwd}/secret.csv')",
    "FROM read_duckdb('{cwd}/secret.csv')",
    "FROM read_text('{cwd}/secret.csv') SELECT content AS PatientID",
    "SELECT PatientID FROM index ANTI JOIN '{cwd}/secret.csv' USING (SeriesInstanceUID)",
    "SELECT getenv('HOME') AS PatientID",
    "{cwd}/secret.csv",
    "file://{cwd}/secret.csv",
    "s3://idc-open-data/../../../..{cwd}/secret.csv",
    f"{LAYOUT}COPY index TO '{{cwd}}/stolen.csv'",
    f"{LAYOUT}ATTACH '{{cwd}}/stolen.db'",
    "SELECT SeriesInstanceUID FROM index; COPY index TO '{cwd}/stolen.csv'",
    "SELECT SeriesInstanceUID FROM index;;; DROP VIEW index",
    "WITH a AS (COPY index TO '{cwd}/stolen.csv') FROM a",
    "WITH a AS (DELETE FROM index RETURNING *) FROM a",
    "SELECT SeriesInstanceUID FROM index INTO OUTFILE '{cwd}/stolen.csv'",
    # Table functions of DuckDB.
    "FROM enable_logging(storage_path='{cwd}/stolen')",
    "FROM enable_logging('QueryLog', storage='file', storage_path='{cwd}/stolen')",
    "FROM enable_profiling(save_location='{cwd}/stolen')",
    "FROM json_execute_serialized_sql('{{}}')",
    "FROM pandas_scan(1)",
    "FROM arrow_scan(1, 2, 3)",
    "FROM python_map_function()",
    "FROM seq_scan()",
    "FROM copy_database('memory', 'memory')",
    "FROM register_external_resource('x')",
    # The tables that idcfs itself uses.
    "FROM given",
    "FROM matched",
    "FROM rendered",
    "FROM cohort_result",
    "FROM series_rows",
    # Queries without series, and wrong layouts.
    "SELECT Modality FROM index",
    "SELECT PatientID AS patient FROM index",
    "-- layout: %Nothing\nSELECT * FROM index",
    "-- layout: " + "/".join("abcdefghijklmnop") + "\nSELECT * FROM index",
    "-- layout: %PatientID//%Modality\nSELECT * FROM index",
    "-- layout: " + "%Modality" * 100000 + "\nSELECT * FROM index",
    "-- layout: " + "/" * 1000000 + "\n1.2.3",
    "SELECT CAST(PatientID AS INTEGER) AS PatientID FROM index",
    "SELECT error(repeat('x', 50000000)) AS PatientID",
    # Texts that are too long, and bytes that are no text.
    "SELECT SeriesInstanceUID FROM index --".ljust(10_000_000, "x"),
    "x" * 10_000_000,
    "SELECT " + "(" * 500_000 + "1" + ")" * 500_000,
    "SELECT " + "NOT " * 200_000 + "true AS PatientID",
    "SELECT " + "-" * 1_000_000,
    b"SELECT '\xff' AS PatientID",
    b"\xff\xfe" + "SELECT SeriesInstanceUID FROM index".encode("utf-16-le"),
    b"SELECT SeriesInstanceUID FROM index\0",
    b"SELECT SeriesInstanceUID\0 FROM index",
    b"\0" * 1000,
    b"s3://\xff/" + UUID.encode(),
]

SOUND = [
    ("SELECT NULL AS PatientID", 0),
    ("SELECT NULL::INTEGER AS crdc_series_uuid, PatientID FROM index", 0),
    ("SELECT [PatientID] AS PatientID FROM index", 0),
    ("SELECT unhex('00ff')::BLOB AS SeriesInstanceUID", 0),
    ("SELECT instanceCount AS SeriesInstanceUID FROM index", 0),
    ("SELECT repeat('x', 10000000) AS collection_id", 0),
    ("1.2.3\nCOPY index TO '{cwd}/stolen.csv'\n; DROP VIEW index\n", 0),
    ("SELECT write_log('x') AS note, 'nothing' AS PatientID", 0),
    ("FROM checkpoint() SELECT 'nothing' AS PatientID", 0),
    ("FROM duckdb_settings() SELECT value AS PatientID", 0),
    ("-- layout: ../../../..{cwd}/%PatientID\nSELECT * FROM index LIMIT 3", 3),
    ("-- layout: %x/%y\nSELECT '{cwd}/stolen' AS x, '..' AS y, * FROM index LIMIT 3", 3),
    ("-- layout: %x\nSELECT repeat('/', 100000) AS x, * FROM index LIMIT 3", 3),
    ("-- layout: %x\nSELECT chr(0) || chr(10) || '/' AS x, * FROM index LIMIT 3", 3),
    ("-- layout: '; DROP VIEW index; --\nSELECT * FROM index LIMIT 3", 3),
    ('-- layout: %a"b\nSELECT 1 AS "a""b", * FROM index LIMIT 3', 3),
    ("SELECT * FROM index LIMIT 3 -- ; COPY index TO '{cwd}/stolen.csv'", 3),
]

ENDLESS = {
    "recursion": "WITH RECURSIVE a(n) AS (SELECT 1 UNION ALL SELECT 1 - n FROM a) SELECT n AS PatientID FROM a",
    "growth": "WITH RECURSIVE a(n) AS (SELECT 'x' UNION ALL SELECT n || n FROM a) SELECT n AS PatientID FROM a",
    "cross join": "SELECT a.PatientID || b.PatientID || c.PatientID AS PatientID FROM index a, index b, index c",
    "sort": "SELECT hash(a)::VARCHAR AS PatientID FROM range(10000000000) t(a) ORDER BY 1",
    "sleeping": "SELECT count(*) AS PatientID FROM range(100000000000000) t(a) WHERE a < 0 AND hash(a) = 7",
    "strings": "SELECT repeat('x', 2000000000) AS PatientID, repeat('y', 2000000000) AS collection_id",
    "list": "SELECT list(repeat(PatientID, 5000)) AS PatientID FROM index",
    "layout values": "-- layout: %x\nSELECT repeat(SeriesInstanceUID, 5000) AS x, * FROM index",
    "a million columns": "SELECT " + ", ".join(["i.*"] * 40_000) + " FROM index i",
    "regular expression": "SELECT regexp_replace(repeat(PatientID, 100000), '(.*)*', 'x', 'g') AS PatientID FROM index",
}


def building_children() -> list[int]:
    """The cohorts' builders that are children of this process."""
    return children_of(os.getpid(), "idcfs.cohorts.build")


class RealWorld:
    """The real index, and a current folder that no text may change."""

    def __init__(self, series: Path, folder: Path) -> None:
        self.series = series
        self.out, self.cwd = folder / "out", folder / "work"
        self.out.mkdir()
        self.cwd.mkdir()
        self.at_once = trio.CapacityLimiter(4)
        (self.cwd / "secret.csv").write_text("SeriesInstanceUID,Secret\nof nobody's business,1\n")

    async def ask(
        self, data: str | bytes, seconds: float = PATIENCE, memory: int = 3 << 30
    ) -> dict[str, Any] | Exception:
        async with self.at_once:
            source = self.out / make_uuid(data, memory)
            if isinstance(data, str):
                data = hostile_text(data, self.cwd).encode()
            source.write_bytes(data)
            view = f"{source}.view"
            request = BuildCohort(TABLES, memory, str(source), DEFAULT_TEMPLATE, str(self.series), view, False)
            try:
                with trio.fail_after(seconds):
                    return (await run_program("idcfs.cohorts.build", request, Facts, [Bound])).facts
            except (QueryRefused, ChildEnded, trio.TooSlowError) as error:
                return error

    def check_is_untouched(self) -> None:
        assert [path.name for path in self.cwd.iterdir()] == ["secret.csv"]
        assert not building_children()


@pytest.fixture(scope="module")
def real_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    catalogue_build.build_series(catalogue_build.connect(TABLES), folder)
    return folder / "series.arrow"


@pytest.fixture
def real(real_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealWorld:
    world = RealWorld(real_series, tmp_path)
    monkeypatch.chdir(world.cwd)
    return world


async def test_hostile_texts_are_refused_and_reach_nothing(real: RealWorld) -> None:
    outcomes: dict[str | bytes, dict[str, Any] | Exception] = {}

    async def ask(data: str | bytes) -> None:
        outcomes[data] = await real.ask(data)

    async with trio.open_nursery() as nursery:
        texts = [*REFUSED, *HOSTILE]
        for data in texts:
            nursery.start_soon(ask, data)
    assert len(outcomes) > 120
    for data, outcome in outcomes.items():
        assert isinstance(outcome, QueryRefused), (data[:200], outcome)
        assert 0 < len(str(outcome)) < 5000
        assert "nobody's business" not in str(outcome)
        assert "root:" not in str(outcome)
    real.check_is_untouched()
    assert not list(real.out.glob("*.view/*"))


async def test_strange_but_valid_texts_are_evaluated(real: RealWorld) -> None:
    outcomes: dict[str, dict[str, Any] | Exception] = {}

    async def ask(data: str) -> None:
        outcomes[data] = await real.ask(data)

    async with trio.open_nursery() as nursery:
        for data, _ in SOUND:
            nursery.start_soon(ask, data)
    for data, series in SOUND:
        outcome = outcomes[data]
        assert isinstance(outcome, dict), (data, outcome)
        assert outcome["counts"]["series"] == series, data
        assert series or data.startswith("FROM checkpoint") or outcome["missed"] >= 1
    real.check_is_untouched()


async def test_texts_that_take_much_time_or_memory_are_stopped(real: RealWorld) -> None:
    outcomes: dict[str, dict[str, Any] | Exception] = {}

    async def ask(name: str) -> None:
        outcomes[name] = await real.ask(ENDLESS[name], seconds=4, memory=2 << 30)

    async with trio.open_nursery() as nursery:
        for name in ENDLESS:
            nursery.start_soon(ask, name)
    assert not {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, dict)}
    real.check_is_untouched()
    assert not [path for path in real.out.rglob("*") if path.is_file() and path.stat().st_size > MAX_SQL]


async def test_too_little_memory_is_not_reported_as_an_unusable_index(real: RealWorld) -> None:
    outcome = await real.ask("SELECT * FROM index LIMIT 3", memory=64 << 20)
    assert isinstance(outcome, QueryRefused), outcome
    # Whether DuckDB starts with so little memory depends on the number of threads.
    assert re.fullmatch(".*: set query_memory to more", str(outcome)), outcome


async def test_a_text_that_takes_too_much_is_refused_and_a_timeout_is_not_remembered(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", [Row()])
    async with open_catalogue(tmp_path / "cache", index) as catalogue:
        hasty, patient = (Results(catalogue, Settings(query_timeout=limit, query_memory=2 << 30)) for limit in (2, 60))
        for results, name, words in (
            (hasty, "sleeping", "took more than 2 seconds"),
            (patient, "strings", "needs? more memory"),
        ):
            for _ in range(2):
                with trio.fail_after(90), pytest.raises(QueryRefused, match=words):
                    await results.get(ENDLESS[name].encode())
        # A refusal by DuckDB for lack of memory is kept; a timeout is not, since the machine may have been busy.
        assert await hasty.kept(ENDLESS["sleeping"].encode()) is None
        assert not building_children()
        kept = list((catalogue.folder / "cohorts").rglob("*"))
        assert {path.name for path in kept if path.is_file()} <= {"facts.json"}
        assert (await patient.get(b"SELECT * FROM index")).facts["counts"]["series"] == 1
