"""The cohort of a query or a manifest, compared with what plain Python computes."""

import itertools
import json
import random
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idcfs.catalog import build as catalogue_build
from idcfs.catalog.index import Index
from idcfs.catalog.messages import Bound
from idcfs.catalog.table import BatchCache, Table
from idcfs.catalog.view import View
from idcfs.cohorts import build
from idcfs.cohorts.messages import BuildCohort, Facts
from idcfs.errors import QueryRefused
from idcfs.layout import DEFAULT_TEMPLATE, parse_template
from idcfs.processes.child import run_program
from idcfs.processes.messages import Message
from tests.index_factory import INDEX_SCHEMA, PriorRow, Row, make_index, make_uuid
from tests.tree_model import tree
from tests.unit.test_view import walk

MEMORY = 3 << 30
COLUMNS = frozenset(INDEX_SCHEMA.names)

Given = tuple[str | None, ...]


class Asked(NamedTuple):
    """The view of a text: its series by their paths, and the facts about it."""

    paths: dict[tuple[bytes, ...], str]
    facts: dict[str, Any]

    @property
    def uuids(self) -> set[str]:
        return set(self.paths.values())


class World:
    """A small index, whose cohorts are built in this process or in a child."""

    def __init__(self, folder: Path, rows: Iterable[Row], prior: Iterable[PriorRow] = ()) -> None:
        self.folder = folder
        self.index = make_index(folder / "index", rows, prior)
        (folder / "built").mkdir()
        connection = catalogue_build.connect(self.index.query_tables, 1)
        catalogue_build.build_series(connection, folder / "built")
        self._numbers = itertools.count()

    def request(self, text: str | bytes, layout: str = DEFAULT_TEMPLATE, memory: int = MEMORY) -> BuildCohort:
        number = next(self._numbers)
        file = self.folder / f"text{number}"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return BuildCohort(
            tables=self.index.query_tables,
            memory=memory,
            text=str(file),
            layout=layout,
            series=str(self.folder / "built" / "series.arrow"),
            folder=str(self.folder / f"view{number}"),
            only_bind=False,
        )

    def ask(self, text: str | bytes, layout: str = DEFAULT_TEMPLATE) -> Asked:
        """Build in this process, which must stay as large as it is."""
        reported: list[Message] = []
        request = self.request(text, layout)
        with patch.object(build, "limit_resources"):
            facts = build.run(request, reported.append)
        assert reported == [Bound()]
        return self._open(request, facts)

    async def ask_child(self, text: str | bytes, layout: str = DEFAULT_TEMPLATE) -> Asked:
        reported: list[Message] = []
        request = self.request(text, layout)
        facts = await run_program("idcfs.cohorts.build", request, Facts, [Bound], reported.append)
        assert reported == [Bound()]
        return self._open(request, facts)

    def _open(self, request: BuildCohort, found: Facts) -> Asked:
        cache = BatchCache(1 << 20)
        view, series = View(Path(request.folder), cache), Table(Path(request.series), cache)
        paths = {path: str(uuid.UUID(bytes=series.value(0, row))) for path, row in walk(view).items()}
        # As they come through a socket or a file.
        facts = json.loads(json.dumps(found.facts))
        assert facts["counts"] == view.counts
        assert facts["counts"]["series"] == len(set(paths.values())) == len(paths)
        view.close()
        series.close()
        return Asked(paths, facts)


@contextmanager
def world(rows: Iterable[Row], prior: Iterable[PriorRow] = ()) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        yield World(Path(folder), rows, prior)


ROWS = [
    Row("nlst", "p1", "1.1", "1.1.1", "CT", columns={"license_short_name": "CC BY 4.0"}),
    Row("nlst", "p1", "1.1", "1.1.2", "SR", sizes=(10,), columns={"license_short_name": "CC BY 4.0"}),
    Row("nlst", "p2", "1.2", "1.2.1", "CT", columns={"license_short_name": "CC BY-NC 3.0"}),
    Row("nlst", "p3", "1.1", "1.3.1", "MR"),
    Row("tcga", "p1", "2.1", "2.1.1", "SM"),
    Row("tcga", "5", "2.2", "2.2.1", "SM"),
]
PRIOR = [
    # An earlier version of the first series, one of a series that was removed, and one that did not change.
    PriorRow("nlst", "p1", "1.1", "1.1.1", "CT", first=1, last=2),
    PriorRow("gone", "p9", "9.1", "9.1.1", "CT", first=1, last=1),
    PriorRow("nlst", "p2", "1.2", "1.2.1", "CT", uuid=ROWS[2].uuid, first=1, last=1),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("small"), ROWS, PRIOR)


def uuids(*numbers: int) -> set[str]:
    return {ROWS[number].uuid for number in numbers}


# The view has exactly the series of the query.

LEVELS = [
    ("crdc_series_uuid",),
    ("SeriesInstanceUID",),
    ("StudyInstanceUID",),
    ("StudyInstanceUID", "PatientID"),
    ("StudyInstanceUID", "collection_id"),
    ("StudyInstanceUID", "PatientID", "collection_id"),
    ("PatientID",),
    ("PatientID", "collection_id"),
    ("collection_id",),
]
AWKWARD = [
    None, "", ".", "..", "../..", "/", "/etc/passwd", "a/b", ".hidden", "a\0b", "\0", "a\nb", "\x7f", "x" * 300,
    "\U0001f480" * 80, "%2F", "%", "it's", '"', "_", "\u212b", "~", "-- x", "NULL", "1", "a", "b", "A",
]  # fmt: skip
LAYOUTS = [
    None,
    "",
    "%crdc_series_uuid",
    "%collection_id/%PatientID/%StudyInstanceUID/%Modality_%SeriesInstanceUID",
    "%SeriesDescription/%Modality",
    "%note",
    "%note/%SeriesDescription",
    "all/%note_%more/../%Modality",
    "..",
    ".",
    "%collection_id.%note//"[:-2] + "/%more%note",
    "/".join(["%PatientID"] * 15),
    "x" * 300,
    'it\'s "quoted"; --',
]

awkward = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Row], list[PriorRow]]:
    few = st.sampled_from(["a", "b", "A", "a b=c", "5"])
    rows = []
    for number in range(draw(st.integers(1, 8))):
        description = draw(awkward)
        columns = {"SeriesDescription": description, "license_short_name": draw(st.sampled_from([None, "CC0"]))}
        row = Row(draw(few), draw(few | st.none()), draw(few), f"1.{number}", draw(few), make_uuid(number))
        rows.append(replace(row, columns=columns))
    prior = []
    for number in range(draw(st.integers(0, 4))):
        # A past version of a series that has changed, of one that has not, and of one that was removed.
        of = draw(st.sampled_from([*rows, Row("gone", "b", "b", "9.9")]))
        same = draw(st.booleans()) and of in rows
        row = PriorRow(
            of.collection, of.patient, of.study, of.series, of.modality, of.uuid if same else "", last=number
        )
        prior += [row] * draw(st.integers(1, 2))
    return rows, prior


def strings(values: Iterable[object]) -> str:
    """Return values as SQL; none has a character that SQL does not allow."""
    return ", ".join("NULL" if value is None else string(str(value)) for value in values)


def string(text: str) -> str:
    return " || chr(0) || ".join(catalogue_build.literal(part) for part in text.split("\0"))


def meant(keys: tuple[str, ...], row: Row, given: Given) -> bool:
    record = row.record()
    if keys == ("crdc_series_uuid",):
        return given[0] is not None and given[0].lower() == record[keys[0]]
    return all(value is not None and value == record[key] for key, value in zip(keys, given, strict=True))


def in_order(values: Given) -> list[tuple[bool, bytes]]:
    """Return the key of DuckDB's order, in which NULL is last."""
    return [(value is None, (value or "").encode()) for value in values]


def with_columns(row: Row, names: Iterable[str], values: Given) -> Row:
    """Return a series with the columns of the index that its row has, and those of the result."""
    record = row.record()
    return Row(
        uuid=row.uuid, columns={name: record.get(name) for name in COLUMNS} | dict(zip(names, values, strict=True))
    )


@settings(max_examples=35, deadline=None)
@given(worlds(), st.sampled_from(LEVELS), st.sampled_from(LAYOUTS), st.data())
def test_a_cohort_has_exactly_the_series_of_its_query_at_the_paths_of_its_layout(
    made: tuple[list[Row], list[PriorRow]], keys: tuple[str, ...], layout: str | None, data: st.DataObject
) -> None:
    rows, prior = made
    everything = {row.uuid: row for row in [*prior, *rows]}
    extra = ("note", "more")
    values: list[tuple[Given, Given]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        of = data.draw(st.sampled_from(list(everything.values()))).record()
        key = [of[name] if data.draw(st.integers(0, 5)) else data.draw(awkward) for name in keys]
        if keys == ("crdc_series_uuid",) and key[0] and data.draw(st.booleans()):
            key[0] = key[0].upper()
        values.append((tuple(key), (data.draw(awkward), data.draw(st.sampled_from("ab")))))
    values += data.draw(st.lists(st.sampled_from(values), max_size=3))
    # A less specific column is ignored beside a more specific one that it does not narrow down.
    idle = {"crdc_series_uuid": "SeriesInstanceUID", "SeriesInstanceUID": "PatientID"}.get(keys[0], "Modality")
    names = [data.draw(st.sampled_from([name, name.lower(), f'"{name.upper()}"'])) for name in (*keys, idle)]
    names, tuples = [*names, *extra], [(*key, "b", *value) for key, value in values]
    sql = f"SELECT * FROM (VALUES {', '.join(f'({strings(row)})' for row in tuples)}) AS t({', '.join(names)})"
    text = sql if layout is None else f"-- layout: {layout}\n{sql}"

    found = {}
    for row in everything.values() if keys == ("crdc_series_uuid",) else rows:
        of_it = [value for key, value in values if meant(keys, row, key)]
        if of_it:
            found[row.uuid] = (row, of_it)
    template = parse_template(DEFAULT_TEMPLATE if layout is None else layout, COLUMNS | {*extra})
    taken = [name for name in template.columns if name in extra]
    positions = [extra.index(name) for name in taken]
    expected = tree(
        (
            with_columns(row, taken, min((tuple(value[at] for at in positions) for value in of_it), key=in_order))
            for row, of_it in found.values()
        ),
        template,
    )
    unmatched = {key for key, _ in values if not any(meant(keys, row, key) for row, _ in found.values())}
    with world(rows, prior) as small:
        paths, facts = small.ask(text)
    assert paths == {path: row.uuid for path, row in expected.items()}
    for name in itertools.chain.from_iterable(paths):
        assert 0 < len(name) <= 255
        assert not name.startswith(b".")
        assert not any(byte < 32 or byte in b"/\x7f" for byte in name)
    assert facts["keys"] == list(keys)
    assert (facts["rows"], facts["missed"]) == (len({key for key, _ in values}), len(unmatched))
    assert {tuple(row) for row in facts["examples"]} == {
        tuple(value and value[: build.EXAMPLE_LENGTH] for value in key) for key in unmatched
    }
    assert sum(facts["licences"].values()) == len(paths)
    assert set(facts["collections"]) == {row.collection for row, _ in found.values()}
    assert facts["layout"] == template.text


@settings(max_examples=20, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_a_cohort_has_exactly_the_series_of_its_manifest_and_lists_all_other_lines(
    made: tuple[list[Row], list[PriorRow]], chance: random.Random
) -> None:
    rows, prior = made
    today, everything = {row.series: row for row in rows}, {row.uuid: row for row in [*prior, *rows]}
    meant: set[str] = {rows[0].uuid}
    lines, missed = [f"s3://idc-open-data/{rows[0].uuid}/*"], set()
    for number in range(2, chance.randrange(2, 30)):
        key = chance.choice([*everything, make_uuid("stranger")])
        match chance.randrange(7):
            case 0:
                lines.append(chance.choice(["", "# 1.2.3", "-- s3://", "  ", "\x0c", "#"]))
                continue
            case 1:
                lines.append(chance.choice(["nonsense", key[:-1], "s3://bucket/", f"{key}x", "1", "SELECT 1", "\0"]))
                missed.add(number)
                continue
            case 2:
                uid = chance.choice([*today, "9.9", "1.2.3.4"])
                lines.append(f" {uid} ")
                meant.update([today[uid].uuid] if uid in today else [])
                # A UID that only past versions have matches if the manifest has its UUID, too.
                missed.update([] if uid in today else [number])
                continue
            case kind:
                spelled = [key.upper(), f"s3://b/{key}/*", f"gs://b/{key}/", f'cp -n "s3://b/{key}/*" "a b"'][kind - 3]
                lines.append(spelled)
        meant.update([key] if key in everything else [])
        missed.update([] if key in everything else [number])
    shown = {everything[key].series for key in meant}
    missed = {number for number in missed if lines[number - 1].strip() not in shown}
    with world(rows, prior) as small:
        asked = small.ask(chance.choice(["\n", "\r\n"]).join(lines), "%crdc_series_uuid")
    assert asked.paths == {(key.encode(),): key for key in meant}
    assert [number for number, _ in asked.facts["lines"]] == sorted(missed)
    assert asked.facts["missed"] == len(missed)
    assert asked.facts["rows"] == sum(bool(line.strip()) and not line.startswith(("#", "-")) for line in lines)


# Examples, most of which run in the child process that a mount uses.


async def test_the_uuid_of_an_earlier_version_names_that_version_and_not_todays(small: World) -> None:
    asked = await small.ask_child(f"SELECT '{PRIOR[0].uuid}' AS crdc_series_uuid, '1.1.1' AS SeriesInstanceUID")
    assert asked.paths == {(b"nlst", b"p1", b"1.1", b"CT_1.1.1"): PRIOR[0].uuid}
    assert PRIOR[0].uuid != ROWS[0].uuid
    assert small.ask("SELECT '1.1.1' AS SeriesInstanceUID").uuids == uuids(0)
    assert small.ask(PRIOR[0].uuid).uuids == {PRIOR[0].uuid}


async def test_two_versions_of_one_series_get_different_names(small: World) -> None:
    asked = await small.ask_child(f"{PRIOR[0].uuid}\n1.1.1\n")
    assert asked.paths == {
        (b"nlst", b"p1", b"1.1", f"CT_1.1.1_{key[:8]}".encode()): key for key in (PRIOR[0].uuid, ROWS[0].uuid)
    }


def test_an_earlier_version_has_only_the_columns_of_its_table(small: World) -> None:
    sql = f"SELECT '{PRIOR[1].uuid}' AS crdc_series_uuid, 'PET' AS SeriesDescription, 'x' AS note"
    asked = small.ask(f"-- layout: %SeriesDescription/%note/%Modality\n{sql}")
    assert asked.paths == {(b"_", b"x", b"CT"): PRIOR[1].uuid}
    assert asked.facts["licences"] == {"unknown": 1}


def test_a_column_of_the_index_has_the_value_of_the_series_and_not_of_the_result(small: World) -> None:
    sql = "-- layout: %Modality\nSELECT 'nlst' AS collection_id, 'p2' AS PatientID, 'PET' AS Modality"
    assert small.ask(sql).paths == {(b"CT",): ROWS[2].uuid}


def test_one_patient_id_of_two_collections_is_narrowed_down_by_the_collection(small: World) -> None:
    assert small.ask("SELECT 'p1' AS PatientID").uuids == uuids(0, 1, 4)
    assert small.ask("SELECT 'tcga' AS collection_id, 'p1' AS PatientID").uuids == uuids(4)
    assert small.ask("SELECT '1.1' AS StudyInstanceUID").uuids == uuids(0, 1, 3)
    assert small.ask("SELECT '1.1' AS StudyInstanceUID, 'p3' AS PatientID").uuids == uuids(3)
    assert small.ask("SELECT '1.1' AS StudyInstanceUID, 'tcga' AS collection_id").uuids == set()


@pytest.mark.parametrize(
    ("value", "listed", "found"),
    [
        ("NULL", None, set()),
        ("5", "5", uuids(5)),
        ("6", "6", set()),
        ("['p1']", "[p1]", set()),
        ("{'a': 'p1'}", "{'a': p1}", set()),
        ("'\\x00\\xFF'::BLOB", "\\x00\\xFF", set()),
        ("1.5", "1.5", set()),
        ("true", "true", set()),
        ("DATE '2020-01-01'", "2020-01-01", set()),
        ("'p1 '", "p1 ", set()),
        ("''", "", set()),
        ("chr(0)", "\0", set()),
        ("repeat('x', 1000000)", "x" * build.EXAMPLE_LENGTH, set()),
    ],
)
def test_ids_of_any_type_are_compared_as_text_and_those_without_series_are_listed(
    small: World, value: str, listed: str | None, found: set[str]
) -> None:
    asked = small.ask(f"SELECT {value} AS PatientID UNION ALL SELECT {value}")
    assert asked.uuids == found
    assert (asked.facts["rows"], asked.facts["missed"]) == (1, 1 - bool(found))
    assert asked.facts["examples"] == ([] if found else [[listed]])


def test_a_uuid_may_be_of_its_own_type_and_in_any_case(small: World) -> None:
    one, other = ROWS[0].uuid, ROWS[1].uuid.upper()
    assert small.ask(f"SELECT '{one}'::UUID AS crdc_series_uuid").uuids == uuids(0)
    asked = small.ask(f"SELECT unnest(['{other}', '{other.lower()}', '{one}']) AS crdc_series_uuid")
    assert (asked.uuids, asked.facts["missed"]) == (uuids(0, 1), 0)


async def test_the_facts_of_a_cohort(small: World) -> None:
    facts = (await small.ask_child("SELECT DISTINCT collection_id FROM index ORDER BY 1 LIMIT 1")).facts
    assert facts["counts"] == {
        "series": 4, "studies": 2, "patients": 3, "collections": 1, "instances": 7, "bytes": 6010,
    }  # fmt: skip
    assert facts["licences"] == {"CC BY 4.0": 2, "CC BY-NC 3.0": 1, "unknown": 1}
    assert next(iter(facts["licences"])) == "CC BY 4.0"
    assert (facts["collections"], facts["rows"], facts["missed"]) == (["nlst"], 1, 0)


def test_only_some_values_without_series_are_listed_but_all_are_counted(small: World) -> None:
    facts = small.ask("SELECT 'x' || n AS SeriesInstanceUID FROM range(1000) t(n) UNION ALL SELECT '1.1.1'").facts
    assert (facts["rows"], facts["missed"], len(facts["examples"])) == (1001, 1000, build.EXAMPLES)
    facts = small.ask("1.1.1\n" + "\n".join(f"7.{n}" for n in range(1000))).facts
    assert (facts["rows"], facts["missed"], len(facts["lines"])) == (1001, 1000, build.EXAMPLES)
    assert facts["lines"][0] == [2, "7.0 is in no version of the index"]


def test_a_manifest_says_that_a_uid_is_only_in_past_versions(small: World) -> None:
    facts = small.ask("1.1.1\n9.1.1\nfoo\n").facts
    assert facts["lines"] == [
        [2, "9.1.1 is in past versions of the index only: name it by its crdc_series_uuid"],
        [3, "'foo' names no series"],
    ]


def test_a_query_without_rows_is_an_empty_folder(small: World) -> None:
    asked = small.ask("SELECT * FROM index WHERE false")
    assert (asked.paths, asked.facts["rows"], asked.facts["licences"]) == ({}, 0, {})


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'p2' AS PatientID, 'p1' AS PatientID",
        "SELECT 'p2' AS PatientID, 'p1' AS patientid",
        "SELECT 1 AS x, 2 AS x, 'p2' AS \"PATIENTID\"",
        "SELECT * FROM index a JOIN index b USING (SeriesInstanceUID) WHERE a.PatientID = 'p2'",
        "SELECT a.*, b.* FROM index a JOIN index b USING (SeriesInstanceUID) WHERE a.PatientID = 'p2'",
        "WITH cohort_result AS (SELECT * FROM index) SELECT PatientID FROM cohort_result WHERE PatientID = 'p2'",
        "WITH given AS (SELECT 'p2' AS PatientID), matched AS (FROM given) TABLE matched;",
        "FROM index SELECT 'a' AS \"c0\", 'b' AS k0, 'c' AS v0, PatientID WHERE PatientID = 'p2'",
        "SELECT 'p2' AS PatientID ORDER BY ALL LIMIT 1 -- the end",
        "SELECT PatientID FROM index WHERE PatientID = 'p2' GROUP BY ALL /* ; */ ;",
    ],
)
def test_other_columns_may_have_any_name_and_number(small: World, sql: str) -> None:
    assert small.ask(sql).uuids == uuids(2)


def test_of_columns_whose_names_differ_in_case_only_the_first_is_used(small: World) -> None:
    sql = "SELECT 'p2' AS PatientID, 'one' AS Note, 'two' AS note"
    assert small.ask(f"-- layout: %Note\n{sql}").paths == {(b"one",): ROWS[2].uuid}
    with pytest.raises(QueryRefused, match="%note is no column"):
        small.ask(f"-- layout: %note/%Note\n{sql}")


@pytest.mark.parametrize("name", ["series", "uuid", "n1", "k0", "v0", "given", "source", "it's", 'a "b"', "a b", "é"])
def test_a_layout_takes_a_column_of_any_name(small: World, name: str) -> None:
    sql = f"SELECT 'p2' AS PatientID, 'seen' AS {catalogue_build.identifier(name)}"
    assert small.ask(f"-- layout: %{name}/%Modality\n{sql}").paths == {(b"seen", b"CT"): ROWS[2].uuid}


def test_the_last_of_five_thousand_columns_is_found(small: World) -> None:
    columns = ", ".join(f"{number} AS c{number}" for number in range(5000))
    assert small.ask(f"SELECT {columns}, 'p2' AS PatientID").uuids == uuids(2)


def test_a_fetched_table_that_is_broken_does_no_harm_to_other_queries(small: World, tmp_path: Path) -> None:
    names = ["half", 'a"b', "INDEX", "gone"]
    for name in names[:3]:
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1")
    index = Index(small.index.folder, small.index.tables, {name: tmp_path / f"{name}.parquet" for name in names})
    reported: list[Message] = []
    with patch.object(build, "limit_resources"):
        request = small.request("SELECT 'p2' AS PatientID")._replace(tables=index.query_tables)
        assert build.run(request, reported.append).facts["counts"]["series"] == 1
        assert reported == [Bound()]
        request = small.request("SELECT PatientID FROM half")._replace(tables=index.query_tables)
        with pytest.raises(QueryRefused, match="half does not exist"):
            build.run(request, reported.append)
        assert reported == [Bound()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT Modality FROM index", "select one of crdc_series_uuid, SeriesInstanceUID"),
        ("-- layout: %Nothing\nSELECT * FROM index", "%Nothing is no column"),
        ("-- layout: %modality\nSELECT * FROM index", "%modality is no column"),
        ("-- layout: %Nothing\n1.1.1", "%Nothing is no column"),
        ("-- layout: " + "/".join("abcdefghijklmnop") + "\nSELECT * FROM index", "more than 15 levels"),
        ("-- layout: %PatientID//%Modality\nSELECT * FROM index", "empty folder name"),
        ("-- layout: %\nSELECT * FROM index", "is no column"),
        ("-- layout: " + "x" * 5000 + "\n1.1.1", "the layout has 5,000 characters"),
        ("-- only a comment", "empty"),
        ("SHOW TABLES", "not a SELECT"),
        ("SELECT 'p1' AS PatientID\0\0\0", "line 1 of the query has a NUL byte"),
        ("SELECT error(repeat('x', 1000000)) AS PatientID", "x" * 100),
        ("SELECT * FROM " + "x" * 100000, "Table with name xxx"),
        ("SELECT chr(55296) AS PatientID", "55296"),
        ("SELECT decode('\\xFF'::BLOB) AS PatientID", "UTF-?8"),
    ],
)
def test_a_refusal_gives_a_short_reason(small: World, text: str, message: str) -> None:
    with pytest.raises(QueryRefused, match=message) as caught:
        small.ask(text)
    assert len(str(caught.value)) < 5000
