"""Building catalogues and views with DuckDB; runs as a child process of its own, so the daemon never loads it.

    python -m idcfs.catalog.build < specification

See `run` for the specification. What is built is whole before it gets a name that others look for.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from idcfs.catalog import view
from idcfs.catalog.description import SERIES_TABLE, write_description
from idcfs.catalog.index import REPAIR
from idcfs.catalog.messages import Build, Step
from idcfs.catalog.table import TableWriter
from idcfs.errors import CacheUnusable, IndexUnusable, UsageError
from idcfs.layout import (
    COHORTS,
    COHORTS_VALUE,
    PLAIN_COMPONENT,
    Column,
    Template,
    escape,
    parse_template,
    with_suffix,
)
from idcfs.processes.messages import Done
from idcfs.processes.server import Report, run_once

SERIES_SCHEMA = pa.schema(
    [("uuid", pa.binary()), ("bucket", pa.uint8()), ("instances", pa.uint32()), ("bytes", pa.uint64())]
)
ATTRIBUTE_ROWS = 8192
"""Rows in a row group of the attributes: one decodes in about 10 ms."""

MEMORY = "3GB"
"""What duckdb may take to build; today's index needs half of it."""

STREAM_ROWS = 1 << 16
"""Rows taken from DuckDB at a time, so that memory does not grow with the index."""

_NEEDED = {
    "index": """collection_id PatientID StudyInstanceUID SeriesInstanceUID Modality aws_bucket crdc_series_uuid
        instanceCount series_size_MB series_revised_idc_version analysis_result_id""",
    "prior_versions_index": """collection_id PatientID StudyInstanceUID SeriesInstanceUID Modality aws_bucket
        crdc_series_uuid series_size_MB min_idc_version max_idc_version""",
}
"""The columns that the tree is built from, by table."""
_LATEST_FIRST = (
    "ORDER BY crdc_series_uuid, max_idc_version DESC, min_idc_version DESC, collection_id, PatientID, "
    "StudyInstanceUID, SeriesInstanceUID"
)
"""Past versions may have one series in several rows; which one counts must not be left to chance."""


def first_of_each_prior(where: str = "") -> str:
    """The SQL of the series that are in past versions only, each once; *where* picks some of the table's rows."""
    return (
        f"(SELECT DISTINCT ON (crdc_series_uuid) * FROM (SELECT * FROM prior_versions_index {where}) "
        f"ANTI JOIN index USING (crdc_series_uuid) {_LATEST_FIRST})"
    )


ALL_SERIES = f"(SELECT * FROM index UNION ALL BY NAME SELECT * FROM {first_of_each_prior()})"
"""The SQL of every series, past versions included, with the columns of `index`."""
_CANONICAL_ORDER = (
    "series_revised_idc_version IS NULL, encode(collection_id), encode(PatientID), StudyInstanceUID, "
    "SeriesInstanceUID, crdc_series_uuid"
)
"""Every row of today's index before the rows of earlier versions, which have no revised version."""

Connection = Any
"""A duckdb.DuckDBPyConnection; duckdb ships no types that hold from 1.2 to 2.x."""


def connect(tables: dict[str, str], threads: int | None = None) -> Connection:
    """A connection that knows the index's files as tables; works with as many *threads*, or cores if None.

    Raises:
        IndexUnusable: a file is not parquet, or lacks a column.
    """
    connection = duckdb.connect(config=_threads(threads))
    for name, path in tables.items():
        try:
            connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet({literal(path)})')
            columns = {row[0] for row in connection.execute(f'DESCRIBE "{name}"').fetchall()}
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise IndexUnusable(f"{path} is not readable ({reason}); {REPAIR}") from error
        for column in _NEEDED.get(name, "").split():
            if column not in columns:
                raise IndexUnusable(f"{path} has no column {column}; {REPAIR}")
    return connection


@contextlib.contextmanager
def build_errors() -> Iterator[None]:
    """Raise what goes wrong in a program that builds as an error of ours.

    Raises:
        IndexUnusable: DuckDB cannot read a table.
        CacheUnusable: the result cannot be written.
    """
    try:
        yield
    except duckdb.Error as error:
        raise IndexUnusable(f"the IDC index is not readable ({str(error).splitlines()[0]}); {REPAIR}") from error
    except OSError as error:
        raise CacheUnusable(f"the catalogue cannot be written: {error}") from error


def _threads(threads: int | None) -> Any:
    if threads is None:
        return {}
    # Newer versions of duckdb start 16 more for files, each with a stack; files on this disk need none.
    known = duckdb.execute("SELECT 1 FROM duckdb_settings() WHERE name = 'async_threads'").fetchall()
    return {"threads": threads, **({"async_threads": 1} if known else {})}


def stream(connection: Connection, sql: str) -> Iterator[pa.RecordBatch]:
    """The rows of a query, a batch at a time."""
    yield from arrow_reader(connection.sql(sql))


def arrow_reader(relation: Any) -> pa.RecordBatchReader:
    """The rows of a relation, to be read in batches."""
    # Newer versions of duckdb call it to_arrow_reader and warn of the other name.
    reader = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
    return reader(STREAM_ROWS)


def literal(text: str) -> str:
    """*text* as a string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """*name* as a column of SQL."""
    return '"' + name.replace('"', '""') + '"'


def build_series(connection: Connection, folder: Path) -> dict[str, Any]:
    """Write the table of all series and say what is in the index, for the catalogue's description."""
    buckets = [
        row[0] for row in connection.execute(f"SELECT DISTINCT aws_bucket FROM {ALL_SERIES} ORDER BY 1").fetchall()
    ]
    places = ", ".join(map(literal, buckets))
    sql = f"""
        SELECT unhex(replace(crdc_series_uuid, '-', '')),
            CAST(list_position([{places}], aws_bucket) - 1 AS UTINYINT),
            CAST(coalesce(instanceCount, 0) AS UINTEGER),
            CAST(round(coalesce(series_size_MB, 0) * 1e6) AS UBIGINT)
        FROM {ALL_SERIES} ORDER BY {_CANONICAL_ORDER}"""
    with TableWriter(folder / SERIES_TABLE, SERIES_SCHEMA) as writer:
        for batch in stream(connection, sql):
            arrays = zip(batch.columns, SERIES_SCHEMA.types, strict=True)
            writer.append([array.cast(kind) for array, kind in arrays])
    if connection.execute("SELECT 1 FROM index LIMIT 1").fetchone() is None:
        raise IndexUnusable(f"the IDC index has no series; {REPAIR}")
    return {
        "buckets": buckets,
        "columns": [row[0] for row in connection.execute('DESCRIBE "index"').fetchall()],
        "rows": writer.rows,
        "releases": _releases(connection),
        "analysis_results": [
            row[0]
            for row in connection.execute(
                "SELECT DISTINCT analysis_result_id FROM index WHERE analysis_result_id <> '' ORDER BY 1"
            ).fetchall()
        ],
    }


def count(connection: Connection, source: str) -> dict[str, int]:
    """The totals of a set of series; past versions do not tell how many instances they had."""
    counts = connection.execute(f"""
        SELECT count(*) AS series, count(DISTINCT StudyInstanceUID) AS studies,
            count(DISTINCT (collection_id, PatientID)) AS patients,
            count(DISTINCT collection_id) AS collections,
            CAST(coalesce(sum(instanceCount), 0) AS BIGINT) AS instances,
            CAST(coalesce(sum(round(series_size_MB * 1e6)), 0) AS BIGINT) AS bytes FROM {source}""")
    return dict(zip([column[0] for column in counts.description], counts.fetchall()[0], strict=True))


def _releases(connection: Connection) -> dict[str, str]:
    """The release date of each IDC version, where the index tells them."""
    rows = []
    with contextlib.suppress(duckdb.CatalogException):
        rows = connection.execute("SELECT idc_version, version_timestamp FROM version_metadata_index").fetchall()
    if not rows:
        rows = connection.execute("SELECT max(series_revised_idc_version), '1970-01-01' FROM index").fetchall()
    return {str(version): str(date) for version, date in rows}


def _check_version(connection: Connection, select: dict[str, Any]) -> None:
    versions = sorted(int(version) for version in _releases(connection))
    if "version" in select and select["version"] not in versions:
        raise UsageError(
            f"IDC version {select['version']} is not in the installed index, which has versions "
            f"{versions[0]} to {versions[-1]}"
        )


def selection(what: dict[str, Any]) -> str:
    """The SQL of a view's set of series, with the columns of `index`."""
    match what:
        case {"version": int(number)}:
            prior = f"SELECT * FROM prior_versions_index WHERE {number} BETWEEN min_idc_version AND max_idc_version"
            return (
                f"(SELECT * FROM index WHERE series_revised_idc_version <= {number} UNION ALL BY NAME "
                f"(SELECT DISTINCT ON (crdc_series_uuid) * FROM ({prior}) {_LATEST_FIRST}))"
            )
        case {"analysis_result": str(name)}:
            return f"(SELECT * FROM index WHERE analysis_result_id = {literal(name)})"
        case {"all": True}:
            return ALL_SERIES
        case _:
            return "index"


def build_view(
    connection: Connection, series_table: Path, source: str, template: Template, counts: dict[str, int], folder: Path
) -> None:
    """Write the view of the series of *source*, laid out by *template*, into *folder* (created).

    Args:
        connection: a trusted one.
        series_table: the table of all series.
        source: SQL of rows with `crdc_series_uuid`, each once, and the template's columns.
        template: the layout.
        counts: the totals of these series (see `count`).
        folder: where the view is to be.
    """
    connection.register("series_rows", _series_rows(series_table))
    levels = [f"n{number}" for number in range(1, len(template.levels) + 1)]
    rendered = ", ".join(
        f"{_component_sql(parts)} AS {name}" for parts, name in zip(template.levels, levels, strict=True)
    )
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE rendered AS
        SELECT {rendered}, series_rows.series AS series, source.crdc_series_uuid AS uuid
        FROM {source} AS source JOIN series_rows
            ON series_rows.uuid = unhex(replace(source.crdc_series_uuid, '-', ''))""")
    connection.unregister("series_rows")
    for name in levels:
        _escape_names(connection, name)
    connection.execute(f"UPDATE rendered SET n1 = {literal(COHORTS_VALUE)} WHERE n1 = {literal(COHORTS)}")
    _tell_namesakes_apart(connection, levels)
    # As bytes: duckdb 1.2 puts text that is not ASCII in another order. No name holds a control character.
    order = f"encode({' || chr(0) || '.join(levels)})"
    batches = stream(connection, f"SELECT {', '.join(levels)}, series FROM rendered ORDER BY {order}")
    rows = _write_levels(batches, template, folder)
    # The template is read again with just its own columns: a cohort's may have some that the index has not.
    description = {"rows": rows, "template": template.text, "columns": template.columns, "counts": counts}
    write_description(folder / view.DESCRIPTION, description)


def _series_rows(series_table: Path) -> pa.Table:
    """The UUIDs of the table of all series, with the numbers of their rows; mapped, so as quick as it is large."""
    with pa.memory_map(str(series_table)) as file:
        uuids = pa.ipc.open_file(file).read_all().column("uuid")
    counted = pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.uint32()), len(uuids)))
    return pa.table({"uuid": uuids, "series": pc.subtract(counted, pa.scalar(1, pa.uint32()))})


def _component_sql(parts: tuple[str | Column, ...]) -> str:
    pieces = [
        f"coalesce(nullif(CAST(source.{identifier(part.name)} AS VARCHAR), ''), '_')"
        if isinstance(part, Column)
        else literal(part)
        for part in parts
    ]
    return " || ".join(pieces)


def _escape_names(connection: Connection, level: str) -> None:
    # The first conditions only save time: they are true of all that is not plain, and of little else.
    unplain = connection.execute(
        f"""SELECT DISTINCT {level} FROM rendered
        WHERE (url_encode({level}) <> {level} OR starts_with({level}, '.') OR strlen({level}) > 200)
            AND NOT regexp_full_match({level}, ?)""",
        [PLAIN_COMPONENT],
    ).fetchall()
    changed = [(raw, escape(raw)) for (raw,) in unplain if escape(raw) != raw]
    if not changed:
        return
    raws, safes = zip(*changed, strict=True)
    connection.register("registered", pa.table({"raw": list(raws), "safe": list(safes)}))
    connection.execute(f"UPDATE rendered SET {level} = safe FROM registered WHERE raw = {level}")
    connection.unregister("registered")


def _tell_namesakes_apart(connection: Connection, levels: list[str]) -> None:
    """Give series that share a whole path a suffix of their UUIDs: short, or all of it where that is not enough."""
    path = ", ".join(levels)
    apart = connection.execute(f"SELECT count(*) = count(DISTINCT hash({path})) FROM rendered").fetchall()[0][0]
    if apart:
        return
    for digits in (8, 36):
        rows = connection.execute(f"""
            SELECT series, {levels[-1]}, uuid FROM rendered
            SEMI JOIN (SELECT {path} FROM rendered GROUP BY ALL HAVING count(*) > 1) USING ({path})
            """).fetchall()
        if not rows:
            return
        renamed = pa.table(
            {
                "renamed": pa.array([row[0] for row in rows], pa.uint32()),
                "told_apart": [with_suffix(name, uuid[:digits]) for _, name, uuid in rows],
            }
        )
        connection.register("registered", renamed)
        connection.execute(f"UPDATE rendered SET {levels[-1]} = told_apart FROM registered WHERE renamed = series")
        connection.unregister("registered")


def _write_levels(batches: Iterator[pa.RecordBatch], template: Template, folder: Path) -> list[int]:
    """Cut sorted rows of names into levels, where a folder is a run of rows with one path; returns their lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    depth = len(template.levels)
    schemas = [view.INNER_SCHEMA] * (depth - 1) + [view.LAST_SCHEMA]
    rows = [0] * depth
    previous: pa.RecordBatch | None = None
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(TableWriter(folder / view.level_file(number), schema))
            for number, schema in enumerate(schemas, start=1)
        ]
        for batch in batches:
            names = [column.cast(pa.binary()) for column in batch.columns[:depth]]
            starts = _starts(names, previous)
            for level in range(depth - 1):
                at = pc.indices_nonzero(starts[level])
                below = pc.cumulative_sum(starts[level + 1].cast(pa.uint32()))
                first = pc.add(pc.take(below, at), pa.scalar(rows[level + 1] - 1, pa.int64()))
                writers[level].append([pc.take(names[level], at), first.cast(pa.uint32())])
            writers[-1].append([names[-1], batch.column(depth).cast(pa.uint32())])
            rows = [writer.rows for writer in writers]
            previous = batch.slice(batch.num_rows - 1)
    return rows


def _starts(names: list[pa.Array], previous: pa.RecordBatch | None) -> list[pa.Array]:
    """For each level, at which rows a new folder starts."""
    rows = len(names[0])
    starts: list[pa.Array] = []
    for level, column in enumerate(names[:-1]):
        if previous is None:
            first = pa.array([True])
        else:
            first = pc.not_equal(column.slice(0, 1), previous.column(level).cast(pa.binary()))
        changed = pa.concat_arrays([first, pc.not_equal(column.slice(1), column.slice(0, rows - 1))])
        starts.append(pc.or_(starts[-1], changed) if starts else changed)
    return [*starts, pa.array([True] * rows)]


def build_attributes(connection: Connection, destination: Path) -> None:
    """Write every column of every series, in the order of the table of all series."""
    import pyarrow.parquet as pq  # takes time to load, and a cohort does without

    temporary = destination.with_suffix(".partial")
    writer: pq.ParquetWriter | None = None
    for batch in stream(connection, f"SELECT * FROM {ALL_SERIES} ORDER BY {_CANONICAL_ORDER}"):
        table = pa.Table.from_batches([batch])
        writer = writer or pq.ParquetWriter(temporary, table.schema, compression="snappy", write_page_checksum=True)
        writer.write_table(table, row_group_size=ATTRIBUTE_ROWS)
    if writer is not None:
        writer.close()
    temporary.replace(destination)


@build_errors()
def run(request: Build, report: Report) -> Done:
    """Build what a request asks for; *report* takes each `Step`."""
    folder = Path(request.folder)
    connection = connect(request.tables)
    # Sorting spills beside what is built; duckdb's own choices are most of the memory, and the current folder.
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    connection.execute(f"SET temp_directory = {literal(str(folder / 'spilled'))}")
    columns = frozenset(row[0] for row in connection.execute('DESCRIBE "index"').fetchall())
    if request.what != "attributes":
        # First, so that what cannot be is refused before it has cost anything.
        template = parse_template(request.template, columns)
        _check_version(connection, request.select)
    if request.what == "catalogue":
        report(Step("reading the index"))
        write_description(folder / "contents.json", build_series(connection, folder))
        report(Step("sorting the tree"))
    if request.what == "attributes":
        build_attributes(connection, folder / "attributes.parquet")
        return Done()
    source = selection(request.select)
    counts = count(connection, source)
    build_view(connection, folder / SERIES_TABLE, source, template, counts, Path(request.view))
    return Done()


if __name__ == "__main__":
    run_once(Build, run)
