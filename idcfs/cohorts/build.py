"""The program that makes a view of the series that a cohort's text names; a child process runs it.

The user's SQL runs in the sandbox of `idcfs.catalog.sandbox` and returns identifiers. A second connection, which the
SQL cannot reach, finds the series and writes the view.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from idcfs.catalog import build
from idcfs.catalog.description import write_description
from idcfs.catalog.messages import Bound
from idcfs.catalog.sandbox import bind, connect_bounded, limit_resources, open_sandbox, refusals
from idcfs.cohorts.messages import BuildCohort, Facts
from idcfs.cohorts.text import Manifest, parse_text
from idcfs.errors import QueryRefused, UsageError
from idcfs.layout import Template, parse_template
from idcfs.processes.server import Report, run_once

IDENTIFIERS: dict[str, tuple[str, ...]] = {
    "crdc_series_uuid": (),
    "SeriesInstanceUID": (),
    "StudyInstanceUID": ("PatientID", "collection_id"),
    "PatientID": ("collection_id",),
    "collection_id": (),
}
"""The columns that identify a row's series, the most specific first, each with the columns that narrow it down: one
study can belong to two patients, and one PatientID to two collections."""

_OF_ONE_SERIES = {"crdc_series_uuid", "SeriesInstanceUID"}
"""The identifiers whose values each name one series."""

EXAMPLES = 100
"""The most lines, or rows, without a series that are listed."""

EXAMPLE_LENGTH = 200
"""Characters of each value that are listed: the daemon reads them, and a value can have gigabytes."""

MAX_LAYOUT = 4096
"""Characters of a layout: no longer path can be opened on Linux (PATH_MAX)."""

_FACTS = (
    "crdc_series_uuid", "collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "instanceCount",
    "series_size_MB", "license_short_name",
)  # fmt: skip
"""The columns that series are found and counted by."""


def _positions(columns: list[str], known: frozenset[str]) -> dict[str, int]:
    """Return the first position of each column of a query's result, under the name that the index has for it."""
    # SQL ignores the case of names: a column is the index's of that name, however it is written.
    spelled = {name.lower(): name for name in known}
    positions: dict[str, int] = {}
    for position, name in enumerate(columns):
        positions.setdefault(spelled.setdefault(name.lower(), name), position)
    return positions


def _keys(columns: Collection[str]) -> list[str]:
    """Return the columns of a query's result that identify series."""
    found = next((name for name in IDENTIFIERS if name in columns), None)
    if found is None:
        raise QueryRefused(f"the result has no column that identifies series; select one of {', '.join(IDENTIFIERS)}")
    return [found, *(name for name in IDENTIFIERS[found] if name in columns)]


@build.build_errors()
def run(request: BuildCohort, report: Report) -> Facts:
    """Build what a cohort's text names; *report* takes `Bound`."""
    started = time.monotonic()
    folder = Path(request.folder)
    folder.mkdir(parents=True)
    limit_resources(request.memory, folder)
    with refusals():
        facts = _build(request, report, folder)
    if facts:
        facts["seconds"] = round(time.monotonic() - started, 3)
        write_description(folder / "facts.json", facts)
    return Facts(facts)


def _build(request: BuildCohort, report: Report, folder: Path) -> dict[str, Any]:
    text = parse_text(Path(request.text).read_bytes())
    layout = request.layout if text.layout is None else text.layout
    connection = connect_bounded(request.tables, request.memory)
    if text.manifest is not None:
        template = _template(layout, frozenset(build.columns_of(connection, "index")))
        report(Bound())
        if request.only_bind:
            return {}
        problems = _match_manifest(connection, text.manifest, template)
    else:
        template, problems = _match_query(connection, request, text.sql or "", layout, report)
        if request.only_bind:
            return {}
    facts = _facts(connection) | problems | {"layout": template.text}
    build.build_view(connection, Path(request.series), "matched", template, facts["counts"], folder)
    return facts


def _template(layout: str, columns: frozenset[str]) -> Template:
    if len(layout) > MAX_LAYOUT:
        raise QueryRefused(f"the layout has {len(layout):,} characters; {MAX_LAYOUT:,} are the most")
    try:
        return parse_template(layout, columns)
    except UsageError as error:
        raise QueryRefused(str(error)) from error


def _match_query(
    connection: build.Connection, request: BuildCohort, sql: str, layout: str, report: Report
) -> tuple[Template, dict[str, Any]]:
    """Make the table `matched` of the series of a SELECT; returns the layout, and the facts of rows without series."""
    sandbox = open_sandbox(request.tables, request.memory)
    relation = bind(sandbox, sql)
    known = frozenset(build.columns_of(connection, "index"))
    positions = _positions(relation.columns, known)
    keys = _keys(positions)
    template = _template(layout, known | positions.keys())
    report(Bound())
    if request.only_bind:
        return template, {}
    # A column of the index has the series' own values: a row for a whole collection has no modality of each series.
    values = [name for name in template.columns if name not in known]
    taken = {f"k{number}": name for number, name in enumerate(keys)}
    taken |= {f"v{number}": name for number, name in enumerate(values)}
    names = ", ".join(f"c{number}" for number in range(max(positions[name] for name in taken.values()) + 1))
    columns = ", ".join(f"CAST(c{positions[name]} AS VARCHAR) AS {short}" for short, name in taken.items())
    # Columns are taken by number, because a result may have two of one name.
    rows = relation.query("cohort_result", f"SELECT DISTINCT {columns} FROM cohort_result AS result({names})")
    connection.register("given", build.arrow_reader(rows).read_all())
    sandbox.close()
    return template, _match_rows(connection, keys, values, template)


def _match_rows(connection: build.Connection, keys: list[str], values: list[str], template: Template) -> dict[str, Any]:
    """Make the table `matched` of the series of the rows of `given`; returns the facts of rows without series."""
    given_keys = ["lower(given.k0)"] if keys == ["crdc_series_uuid"] else [f"given.k{n}" for n in range(len(keys))]
    on = " AND ".join(f"{key} = source.{name}" for key, name in zip(given_keys, keys, strict=True))
    taken = {name: f"given.v{number}" for number, name in enumerate(values)}
    join = "JOIN" if values else "SEMI JOIN"
    connection.execute(
        f"CREATE TEMP TABLE matched AS SELECT {_selected(template, taken)} FROM index AS source {join} given ON {on}"
    )
    short = ", ".join(f"k{number}" for number in range(len(keys)))
    rows, matched = (_count(connection, f"(SELECT DISTINCT {short} FROM given)"), _count(connection, "matched"))
    missed, examples = 0, []
    if keys[0] not in _OF_ONE_SERIES or values or matched < rows:
        tables = "index AS source"
        if keys[0] == "crdc_series_uuid":
            _add_past_versions(connection, "SELECT lower(k0) FROM given", template, taken, f"{join} given ON {on}")
            tables = "matched AS source"
        connection.execute(f"CREATE TEMP TABLE missed AS SELECT DISTINCT {short} FROM given ANTI JOIN {tables} ON {on}")
        missed = _count(connection, "missed")
        cut = ", ".join(f"left(k{number}, {EXAMPLE_LENGTH})" for number in range(len(keys)))
        examples = connection.execute(f"SELECT {cut} FROM missed ORDER BY ALL LIMIT {EXAMPLES}").fetchall()
    connection.unregister("given")
    if values:
        # Rows may have different values for one series: the first in the order of bytes counts (see `build_view`).
        order = ", ".join(["crdc_series_uuid", *(f"encode({build.identifier(name)})" for name in values)])
        first = f"SELECT DISTINCT ON (crdc_series_uuid) * FROM matched ORDER BY {order}"
        connection.execute(f"CREATE OR REPLACE TEMP TABLE matched AS {first}")
    return {"keys": keys, "rows": rows, "missed": missed, "examples": [list(row) for row in examples]}


def _count(connection: build.Connection, table: str) -> int:
    return int(build.first_column(connection, f"SELECT count(*) FROM {table}")[0])


def _selected(template: Template, taken: dict[str, str] | None = None, known: set[str] | None = None) -> str:
    """Return the SQL of the columns of `matched`: as in *taken*, else of the table `source`, or NULL if not *known*."""
    taken = taken or {}
    columns = dict.fromkeys([*_FACTS, *template.columns])
    return ", ".join(
        taken.get(name, f"source.{build.identifier(name)}" if known is None or name in known else "NULL")
        + f" AS {build.identifier(name)}"
        for name in columns
    )


def _add_past_versions(
    connection: build.Connection, uuids: str, template: Template, taken: dict[str, str] | None = None, join: str = ""
) -> None:
    """Add the series of these UUIDs that only past versions have to `matched`."""
    known = set(build.columns_of(connection, "prior_versions_index"))
    source = build.prior_series(f"WHERE crdc_series_uuid IN ({uuids})")
    connection.execute(f"INSERT INTO matched SELECT {_selected(template, taken, known)} FROM {source} AS source {join}")


def _match_manifest(connection: build.Connection, manifest: Manifest, template: Template) -> dict[str, Any]:
    """Make the table `matched` of the series of a manifest; returns the facts of lines without series."""
    for name, lines in (("uuids", manifest.uuids), ("uids", manifest.uids)):
        numbers, values = zip(*lines, strict=True) if lines else ((), ())
        table = pa.table({"line": pa.array(numbers, pa.int64()), "value": pa.array(values, pa.string())})
        connection.register(name, table)
    connection.execute(f"""
        CREATE TEMP TABLE matched AS SELECT {_selected(template)} FROM index AS source
        WHERE crdc_series_uuid IN (SELECT value FROM uuids) OR SeriesInstanceUID IN (SELECT value FROM uids)""")
    _add_past_versions(connection, "SELECT value FROM uuids", template)
    missing = connection.execute(f"""
        SELECT line, value || ' is in no version of the index' FROM uuids ANTI JOIN matched ON value = crdc_series_uuid
        UNION ALL
        SELECT line, left(value, {EXAMPLE_LENGTH}) || CASE
            WHEN value IN (SELECT SeriesInstanceUID FROM prior_versions_index)
            THEN ' is in past versions of the index only: name it by its crdc_series_uuid'
            ELSE ' is in no version of the index' END
        FROM uids ANTI JOIN matched ON value = SeriesInstanceUID""").fetchall()
    unreadable = [(line, f"{text[:EXAMPLE_LENGTH]!r} names no series") for line, text in manifest.unreadable]
    return {
        "lines": sorted([*missing, *unreadable])[:EXAMPLES],
        "missed": len(missing) + len(unreadable),
        "rows": sum(map(len, manifest)),
    }


def _facts(connection: build.Connection) -> dict[str, Any]:
    licences = connection.execute("""
        SELECT coalesce(license_short_name, 'unknown'), count(*) FROM matched GROUP BY 1 ORDER BY 2 DESC, 1""")
    facts: dict[str, Any] = {"licences": dict(licences.fetchall())}
    collections = build.first_column(connection, "SELECT DISTINCT collection_id FROM matched ORDER BY 1")
    return facts | {"collections": collections, "counts": build.count(connection, "matched")}


if __name__ == "__main__":
    run_once(BuildCohort, run)
