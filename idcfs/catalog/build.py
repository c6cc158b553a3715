"""The program that builds catalogues and views; a child process runs it, so that the daemon never loads DuckDB.

    python -m idcfs.catalog.build < specification

`run` describes the specification. A table is complete before it gets the name that readers look for.
"""

import contextlib
from collections.abc import Iterable, Iterator
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
"""Rows in a row group of the attributes file; decoding one takes about 10 ms."""

MEMORY = "3GB"
"""DuckDB's memory limit during a build; today's index needs half of it."""

STREAM_ROWS = 1 << 16
"""Rows taken from DuckDB at a time, so that memory does not grow with the index."""

_NEEDED_COLUMNS = {
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
"""A series of past versions may have several rows; in this order the same one always comes first."""


def prior_series(where: str = "") -> str:
    """Return the SQL of the series that only past versions have, one row each; *where* filters the table's rows."""
    return (
        f"(SELECT DISTINCT ON (crdc_series_uuid) * FROM (SELECT * FROM prior_versions_index {where}) "
        f"ANTI JOIN index USING (crdc_series_uuid) {_LATEST_FIRST})"
    )


ALL_SERIES = f"(SELECT * FROM index UNION ALL BY NAME SELECT * FROM {prior_series()})"
"""SQL of every series, past versions included, with the columns of `index`."""
_CANONICAL_ORDER = (
    "series_revised_idc_version IS NULL, encode(collection_id), encode(PatientID), StudyInstanceUID, "
    "SeriesInstanceUID, crdc_series_uuid"
)
"""The order of the series table: today's series come first, because rows of past versions have no revised version."""

Connection = Any
"""A duckdb.DuckDBPyConnection; DuckDB has no type stubs that fit all versions from 1.2 to 2.x."""


def connect(tables: dict[str, str], threads: int | None = None) -> Connection:
    """Return a connection with the index's files as tables, and as many *threads*, or one per core if None.

    Raises:
        IndexUnusable: a file is not parquet, or lacks a column.
    """
    connection = duckdb.connect(config=_threads(threads))
    for name, path in tables.items():
        try:
            connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet({literal(path)})')
            columns = columns_of(connection, name)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise IndexUnusable(f"{path} is not readable ({reason}); {REPAIR}") from error
        for column in _NEEDED_COLUMNS.get(name, "").split():
            if column not in columns:
                raise IndexUnusable(f"{path} has no column {column}; {REPAIR}")
    return connection


@contextlib.contextmanager
def build_errors() -> Iterator[None]:
    """Raise the errors of DuckDB and of the system as errors of idcfs.

    Raises:
        IndexUnusable: DuckDB cannot read a table.
        CacheUnusable: the result cannot be written.
    """
    try:
        yield
    except duckdb.Error as error:
        raise IndexUnusable(f"the IDC index is not readable ({str(error).splitlines()[0]}); {REPAIR}") from error
    except OSError as error:
        raise CacheUnusable(f"the catalogue cannot be written ({error}); choose another --cache-dir") from error


def _threads(threads: int | None) -> Any:
    if threads is None:
        return {}
    # Newer versions of DuckDB start 16 more threads for files, each with a stack; local files need none.
    known = duckdb.execute("SELECT 1 FROM duckdb_settings() WHERE name = 'async_threads'").fetchall()
    return {"threads": threads, **({"async_threads": 1} if known else {})}


def first_column(connection: Connection, sql: str) -> list[Any]:
    """Return the first value of each row of a query."""
    return [row[0] for row in connection.execute(sql).fetchall()]


def columns_of(connection: Connection, table: str) -> list[str]:
    """Return the names of a table's columns, in order."""
    return first_column(connection, f"DESCRIBE {identifier(table)}")


def arrow_reader(relation: Any) -> pa.RecordBatchReader:
    """Return a reader of the rows of a relation in batches."""
    # Newer versions of DuckDB call it to_arrow_reader and warn about the old name.
    reader = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
    return reader(STREAM_ROWS)


def literal(text: str) -> str:
    """Return *text* as a string literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return *name* as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def build_series(connection: Connection, folder: Path) -> dict[str, Any]:
    """Write the table of all series; returns the facts of the index for the catalogue's description."""
    buckets = first_column(connection, f"SELECT DISTINCT aws_bucket FROM {ALL_SERIES} ORDER BY 1")
    bucket_list = ", ".join(map(literal, buckets))
    sql = f"""
        SELECT unhex(replace(crdc_series_uuid, '-', '')),
            CAST(list_position([{bucket_list}], aws_bucket) - 1 AS UTINYINT),
            CAST(coalesce(instanceCount, 0) AS UINTEGER),
            CAST(round(coalesce(series_size_MB, 0) * 1e6) AS UBIGINT)
        FROM {ALL_SERIES} ORDER BY {_CANONICAL_ORDER}"""
    with TableWriter(folder / SERIES_TABLE, SERIES_SCHEMA) as writer:
        for batch in arrow_reader(connection.sql(sql)):
            arrays = zip(batch.columns, SERIES_SCHEMA.types, strict=True)
            writer.append([array.cast(kind) for array, kind in arrays])
    if connection.execute("SELECT 1 FROM index LIMIT 1").fetchone() is None:
        raise IndexUnusable(f"the IDC index has no series; {REPAIR}")
    return {
        "buckets": buckets,
        "columns": columns_of(connection, "index"),
        "rows": writer.rows,
        "releases": _releases(connection),
        "analysis_results": first_column(
            connection, "SELECT DISTINCT analysis_result_id FROM index WHERE analysis_result_id <> '' ORDER BY 1"
        ),
    }


def count(connection: Connection, source: str) -> dict[str, int]:
    """Return the totals of a set of series; past versions have no number of instances."""
    counts = connection.execute(f"""
        SELECT count(*) AS series, count(DISTINCT StudyInstanceUID) AS studies,
            count(DISTINCT (collection_id, PatientID)) AS patients,
            count(DISTINCT collection_id) AS collections,
            CAST(coalesce(sum(instanceCount), 0) AS BIGINT) AS instances,
            CAST(coalesce(sum(round(series_size_MB * 1e6)), 0) AS BIGINT) AS bytes FROM {source}""")
    return dict(zip([column[0] for column in counts.description], counts.fetchall()[0], strict=True))


def _releases(connection: Connection) -> dict[str, str]:
    """Return the release date of each IDC version; an index without them has its own version only, dated 1970."""
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
    """Return the SQL of a view's set of series, with the columns of `index`."""
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
    """Write the view of the series of *source*, laid out by *template*, into *folder*, which it creates.

    Args:
        connection: one that runs no SQL of users.
        series_table: the table of all series.
        source: SQL of rows with a `crdc_series_uuid`, each once, and the template's columns.
        template: the layout.
        counts: the totals of these series (see `count`).
        folder: the view's.
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
    _make_paths_unique(connection, levels)
    # By bytes, because DuckDB 1.2 orders text that is not ASCII differently; NUL separates names, which have none.
    order = f"encode({' || chr(0) || '.join(levels)})"
    sorted_rows = connection.sql(f"SELECT {', '.join(levels)}, series FROM rendered ORDER BY {order}")
    rows = _write_levels(arrow_reader(sorted_rows), template, folder)
    # Readers parse the template again, with these columns: those of a cohort may be missing from the index.
    description = {"rows": rows, "template": template.text, "columns": template.columns, "counts": counts}
    write_description(folder / view.DESCRIPTION, description)


def _series_rows(series_table: Path) -> pa.Table:
    """Return the UUIDs of the table of all series with their row numbers; maps the file, as all of it is read once."""
    with pa.memory_map(str(series_table)) as file:
        uuids = pa.ipc.open_file(file).read_all().column("uuid")
    numbers = pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.uint32()), len(uuids)))
    return pa.table({"uuid": uuids, "series": pc.subtract(numbers, pa.scalar(1, pa.uint32()))})


def _component_sql(parts: tuple[str | Column, ...]) -> str:
    pieces = [
        f"coalesce(nullif(CAST(source.{identifier(part.name)} AS VARCHAR), ''), '_')"
        if isinstance(part, Column)
        else literal(part)
        for part in parts
    ]
    return " || ".join(pieces)


def _escape_names(connection: Connection, level: str) -> None:
    # The first conditions are a quick filter: they hold for every name that is not plain, and for few others.
    unplain = connection.execute(
        f"""SELECT DISTINCT {level} FROM rendered
        WHERE (url_encode({level}) <> {level} OR starts_with({level}, '.') OR strlen({level}) > 200)
            AND NOT regexp_full_match({level}, ?)""",
        [PLAIN_COMPONENT],
    ).fetchall()
    changed = {raw: safe for (raw,) in unplain if (safe := escape(raw)) != raw}
    if changed:
        _rename(connection, level, level, pa.array(changed, pa.string()), changed.values())


def _rename(connection: Connection, level: str, key: str, keys: pa.Array, names: Iterable[str]) -> None:
    """Set the name at a level of the rows of `rendered` whose value in the column *key* is one of *keys*."""
    connection.register("renamed", pa.table({"one_key": keys, "name": pa.array(names, pa.string())}))
    connection.execute(f"UPDATE rendered SET {level} = name FROM renamed WHERE one_key = {key}")
    connection.unregister("renamed")


def _make_paths_unique(connection: Connection, levels: list[str]) -> None:
    """Append 8 digits of its UUID to each series that shares a whole path, or the whole UUID if these are equal."""
    path = ", ".join(levels)
    if first_column(connection, f"SELECT count(*) = count(DISTINCT hash({path})) FROM rendered")[0]:
        return
    for digits in (8, 36):
        rows = connection.execute(f"""
            SELECT series, {levels[-1]}, uuid FROM rendered
            SEMI JOIN (SELECT {path} FROM rendered GROUP BY ALL HAVING count(*) > 1) USING ({path})
            """).fetchall()
        if not rows:
            return
        series = pa.array([row[0] for row in rows], pa.uint32())
        _rename(connection, levels[-1], "series", series, [with_suffix(name, uuid[:digits]) for _, name, uuid in rows])


def _write_levels(batches: pa.RecordBatchReader, template: Template, folder: Path) -> list[int]:
    """Write the levels of sorted rows of names, where rows with one path are one folder; returns their lengths."""
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
            starts = _folder_starts(names, previous)
            for level in range(depth - 1):
                at = pc.indices_nonzero(starts[level])
                below = pc.cumulative_sum(starts[level + 1].cast(pa.uint32()))
                first = pc.add(pc.take(below, at), pa.scalar(rows[level + 1] - 1, pa.int64()))
                writers[level].append([pc.take(names[level], at), first.cast(pa.uint32())])
            writers[-1].append([names[-1], batch.column(depth).cast(pa.uint32())])
            rows = [writer.rows for writer in writers]
            previous = batch.slice(batch.num_rows - 1)
    return rows


def _folder_starts(names: list[pa.Array], previous: pa.RecordBatch | None) -> list[pa.Array]:
    """Return, for each level, whether a new folder starts at each row."""
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
    import pyarrow.parquet as pq  # slow to load, and cohorts do not need it

    temporary = destination.with_suffix(".partial")
    batches = arrow_reader(connection.sql(f"SELECT * FROM {ALL_SERIES} ORDER BY {_CANONICAL_ORDER}"))
    with pq.ParquetWriter(temporary, batches.schema, compression="snappy", write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_batch(batch, ATTRIBUTE_ROWS)
    temporary.replace(destination)


@build_errors()
def run(request: Build, report: Report) -> Done:
    """Build what a request asks for; *report* takes each `Step`."""
    folder = Path(request.folder)
    connection = connect(request.tables)
    # DuckDB's defaults are most of the machine's memory, and the current folder for what does not fit into it.
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    connection.execute(f"SET temp_directory = {literal(str(folder / 'spilled'))}")
    if request.what == "attributes":
        build_attributes(connection, folder / "attributes.parquet")
        return Done()
    # Checked first, so that a wrong template or version is refused at once.
    template = parse_template(request.template, frozenset(columns_of(connection, "index")))
    _check_version(connection, request.select)
    if request.what == "catalogue":
        report(Step("reading the index"))
        write_description(folder / "contents.json", build_series(connection, folder))
        report(Step("sorting the tree"))
    source = selection(request.select)
    counts = count(connection, source)
    build_view(connection, folder / SERIES_TABLE, source, template, counts, Path(request.view))
    return Done()


if __name__ == "__main__":
    run_once(Build, run)
