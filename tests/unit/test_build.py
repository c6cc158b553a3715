import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idcfs.catalog import build
from idcfs.catalog.description import read_description
from idcfs.catalog.index import Index, find_index
from idcfs.catalog.messages import Build, Step
from idcfs.catalog.table import BatchCache, Table
from idcfs.catalog.view import View
from idcfs.errors import IndexUnusable
from idcfs.processes.messages import Done, Message
from tests.index_factory import INDEX_SCHEMA, PriorRow, Row, make_index, make_uuid
from tests.processes import started

ROWS = [
    Row("a", "p1", revised=1),
    Row("a", "p2", revised=2, analysis_result="Nuclei"),
    Row("b", "p3", revised=3, bucket="idc-open-data-two", analysis_result="it's"),
]
PRIOR = [
    PriorRow("a", "p2", first=1, last=1, sizes=(5,), uuid=make_uuid("p2 as it was")),
    PriorRow("gone", "p4", first=1, last=2, bucket="idc-open-data-cr"),
    # One series in two rows, which are valid in different versions.
    PriorRow("moved", "p5", first=1, last=1, uuid=make_uuid("p5")),
    PriorRow("moved", "p5", first=2, last=2, uuid=make_uuid("p5")),
]


def tables(index: Index) -> dict[str, str]:
    return {name: str(path) for name, path in index.tables.items()}


def run(folder: Path, index: Index, what: str, **fields: Any) -> list[str]:
    """Build something; returns the steps that are reported."""
    steps: list[str] = []

    def report(step: Message) -> None:
        assert isinstance(step, Step)
        steps.append(step.text)

    assert build.run(Build(what, str(folder), tables(index), **fields), report) == Done()
    return steps


def build_catalogue(folder: Path, index: Index) -> Path:
    built = folder / "built"
    built.mkdir()
    steps = run(built, index, what="catalogue", template="%PatientID", select={}, view=str(built / "main"))
    assert steps == ["reading the index", "sorting the tree"]
    return built


def patients(folder: Path, index: Index, select: dict[str, Any]) -> dict[str, str]:
    """Return the UUID of the series of each patient in the view of *select*."""
    view_folder = folder / f"view{random.random()}"
    run(folder, index, what="view", template="%PatientID", select=select, view=str(view_folder))
    cache = BatchCache(1 << 20)
    view, series = View(view_folder, cache), Table(folder / "series.arrow", cache)
    return {
        view.name(1, group).decode(): str(UUID(bytes=series.value(0, view.series_row(group))))
        for group in view.children(0, 0)
    }


def counts(folder: Path, built: Path, index: Index, select: dict[str, Any]) -> Mapping[str, int]:
    """Return the totals of the view of *select*."""
    view = folder / f"view{random.random()}"
    run(built, index, what="view", template="%PatientID", select=select, view=str(view))
    return View(view, BatchCache(1 << 20)).counts


def uuids(*rows: Row) -> dict[str, str]:
    return {str(row.patient): row.uuid for row in rows}


def test_the_table_of_all_series_always_has_the_same_order(tmp_path: Path) -> None:
    orders = []
    for number in range(3):
        rows, prior = random.Random(number).sample(ROWS, 3), random.Random(number).sample(PRIOR, 4)
        index = make_index(tmp_path / f"index{number}", rows, prior)
        built = tmp_path / f"built{number}"
        built.mkdir()
        run(built, index, what="catalogue", template="%PatientID", select={}, view=str(built / "main"))
        series = Table(built / "series.arrow", BatchCache(1 << 20))
        buckets = read_description(built / "contents.json")["buckets"]
        orders.append(
            [
                (str(UUID(bytes=uuid)), buckets[bucket], count, size)
                for uuid, bucket, count, size in zip(*(series.values(n, 0, len(series)) for n in range(4)), strict=True)
            ]
        )
    assert orders[0] == [
        # Today's series by collection and patient, then those of past versions, without numbers of instances.
        *[(row.uuid, row.bucket, 2, 2000) for row in ROWS],
        (PRIOR[0].uuid, "idc-open-data", 0, 5),
        (PRIOR[1].uuid, "idc-open-data-cr", 0, 2000),
        (PRIOR[2].uuid, "idc-open-data", 0, 2000),
    ]
    assert orders[1:] == orders[:2]


def test_the_contents_of_the_index_are_counted(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", [*ROWS, Row("a", "p1", modality="SEG")], PRIOR)
    built = build_catalogue(tmp_path, index)
    assert View(built / "main", BatchCache(1 << 20)).counts == {
        "series": 4, "studies": 3, "patients": 3, "collections": 2, "instances": 8, "bytes": 8000
    }  # fmt: skip
    assert counts(tmp_path, built, index, {"version": 1}) == {
        # Rows of past versions have no number of instances.
        "series": 5, "studies": 4, "patients": 4, "collections": 3, "instances": 4, "bytes": 8005
    }  # fmt: skip
    assert counts(tmp_path, built, index, {"analysis_result": "none"})["bytes"] == 0
    contents = read_description(built / "contents.json")
    assert contents["releases"] == {"1": "2020-06-01", "2": "2021-04-10", "3": "2021-07-13"}
    assert contents["analysis_results"] == ["Nuclei", "it's"]
    assert contents["rows"] == 7


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (1, uuids(ROWS[0], PRIOR[0], PRIOR[1], PRIOR[2])),
        (2, uuids(ROWS[0], ROWS[1], PRIOR[1], PRIOR[3])),
        (3, uuids(*ROWS)),
    ],
)
def test_a_version_has_the_series_that_were_valid_then(tmp_path: Path, version: int, expected: dict[str, str]) -> None:
    index = make_index(tmp_path / "index", ROWS, PRIOR)
    assert patients(build_catalogue(tmp_path, index), index, {"version": version}) == expected


def test_views_of_other_sets_of_series(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", ROWS, PRIOR)
    built = build_catalogue(tmp_path, index)
    assert patients(built, index, {"analysis_result": "Nuclei"}) == uuids(ROWS[1])
    assert patients(built, index, {"analysis_result": "it's"}) == uuids(ROWS[2])
    assert patients(built, index, {"analysis_result": "none"}) == {}
    assert patients(built, index, {}) == uuids(*ROWS)
    folder = tmp_path / "by-uuid"
    run(built, index, what="view", template="%crdc_series_uuid", select={"all": True}, view=str(folder))
    view = View(folder, BatchCache(1 << 20))
    everything = sorted({row.uuid for row in (*ROWS, *PRIOR)})
    assert [name.decode() for name in view.names(1, view.children(0, 0))] == everything


def test_of_several_rows_of_one_series_the_same_one_is_always_used(tmp_path: Path) -> None:
    disagreeing = [PriorRow("a", f"p{number}", uuid=make_uuid("one"), first=1, last=2) for number in range(40)]
    found = []
    for number in range(4):
        prior = random.Random(number).sample(disagreeing, 40)
        index = make_index(tmp_path / f"index{number}", [Row(revised=3)], prior)
        (tmp_path / str(number)).mkdir()
        found.append(patients(build_catalogue(tmp_path / str(number), index), index, {"version": 1}))
    assert found == [{"p0": make_uuid("one")}] * 4


def test_attributes_are_in_the_rows_of_their_series(tmp_path: Path) -> None:
    rows = [Row("c", f"p{number}", uuid=make_uuid(number), sizes=()) for number in range(20_000)]
    index = make_index(tmp_path / "index", rows, PRIOR)
    built = build_catalogue(tmp_path, index)
    run(built, index, what="attributes")
    attributes = pq.ParquetFile(built / "attributes.parquet", page_checksum_verification=True)
    series = Table(built / "series.arrow", BatchCache(1 << 20))
    assert [attributes.metadata.row_group(group).num_rows for group in range(3)] == [8192, 8192, 3619]
    read = attributes.read(columns=["crdc_series_uuid", "PatientID", "min_idc_version"])
    assert read.column("crdc_series_uuid").to_pylist() == [
        str(UUID(bytes=uuid)) for uuid in series.values(0, 0, len(series))
    ]
    assert read.slice(20_000).to_pylist()[0] == {
        "crdc_series_uuid": PRIOR[0].uuid, "PatientID": "p2", "min_idc_version": 1
    }  # fmt: skip


@pytest.mark.parametrize("is_there", [True, False])
def test_an_index_without_a_table_of_versions_has_its_own_version(tmp_path: Path, is_there: bool) -> None:
    index = make_index(tmp_path / "index", ROWS, releases={})
    if not is_there:
        (tmp_path / "index" / "version_metadata_index.parquet").unlink()
        index = find_index(tmp_path / "index")
    contents = read_description(build_catalogue(tmp_path, index) / "contents.json")
    assert list(contents["releases"]) == ["3"]


def remove(column: str, file: str = "idc_index.parquet") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        table = pq.read_table(folder / file)
        pq.write_table(table.drop_columns([column]), folder / file)

    change.__name__ = f"remove {column}"
    return change


def garbage(folder: Path) -> None:
    (folder / "idc_index.parquet").write_bytes(b"PAR1 nothing of the sort PAR1")


def cut(folder: Path) -> None:
    path = folder / "prior_versions_index.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def empty(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist([], INDEX_SCHEMA), folder / "idc_index.parquet")


def no_uuid(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist([Row(uuid="not a UUID").record()], INDEX_SCHEMA), folder / "idc_index.parquet")


def middle_overwritten(folder: Path) -> None:
    path = folder / "idc_index.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 3000 + data[3004:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("crdc_series_uuid"), "idc_index.parquet has no column crdc_series_uuid"),
        (remove("analysis_result_id"), "idc_index.parquet has no column analysis_result_id"),
        (
            remove("max_idc_version", "prior_versions_index.parquet"),
            "prior_versions_index.parquet has no column max_idc_version",
        ),
        (garbage, "idc_index.parquet is not readable"),
        (cut, "prior_versions_index.parquet is not readable"),
        (empty, "has no series"),
        (no_uuid, "not readable"),
        (middle_overwritten, "not readable"),
    ],
)
def test_an_index_that_cannot_be_used_is_said_in_one_line(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    index = make_index(tmp_path / "index", ROWS, PRIOR)
    change(tmp_path / "index")
    (tmp_path / "built").mkdir()
    view = str(tmp_path / "built" / "main")
    with pytest.raises(IndexUnusable) as raised:
        run(tmp_path / "built", index, what="catalogue", template="%PatientID", select={}, view=view)
    last = str(raised.value)
    assert message in last
    assert "\n" not in last
    assert "pip install" in last, "the way out"


def test_an_index_without_a_needed_file_is_refused(tmp_path: Path) -> None:
    make_index(tmp_path, ROWS)
    (tmp_path / "prior_versions_index.parquet").unlink()
    with pytest.raises(IndexUnusable, match=r"has no prior_versions_index\.parquet"):
        find_index(tmp_path)
    with pytest.raises(IndexUnusable, match=r"has no idc_index\.parquet"):
        find_index(tmp_path / "missing")


def test_another_index_has_another_fingerprint(tmp_path: Path) -> None:
    one = make_index(tmp_path / "one", ROWS)
    assert one.fingerprint == find_index(tmp_path / "one").fingerprint
    before = one.fingerprint
    make_index(tmp_path / "one", ROWS[:2])
    assert one.fingerprint != before


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", [Row("c", f"p{number}", sizes=()) for number in range(5000)])
    (tmp_path / "built").mkdir()
    built = str(tmp_path / "built")
    request = Build("catalogue", built, tables(index), template="%PatientID", view=f"{built}/main")
    with started("idcfs.catalog.build", request) as (child, connection):
        connection.close()
        assert child.wait(60) == 1
    assert not (tmp_path / "built" / "main" / "view.json").exists()
