"""The command `idcfs query`."""

import csv
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from idcfs import errors
from idcfs.cli.group import SqlCommand, index_option, main, option
from idcfs.config import Settings, load_settings

TABLE_ROWS = 100
"""Rows that a table shows if no limit is given: a table is for reading, not for export."""


@main.command(cls=SqlCommand, short_help="Run SQL over the tables of the IDC index.")
@click.argument("sql")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", help="Default: table."
)
@click.option("--limit", metavar="N", type=click.IntRange(min=0), help="Rows. Default: 100 for a table, else all.")
@index_option
@option("--query-memory", "SIZE", "Memory that the query may take. Default: 3GiB.")
@option("--query-timeout", "SECONDS", "How long the query may take. Default: 60.")
def query(sql: str, form: str, limit: int | None, **flags: Any) -> None:
    """Run one SELECT over the tables of the IDC index and print the result.

    The tables have idc-index's names: index, prior_versions_index, collections_index, analysis_results_index,
    version_metadata_index, and any other the index folder holds. The query can read these and nothing else.

    \b
    Example:
      idcfs query "SELECT Modality, count(*) AS series FROM index GROUP BY 1 ORDER BY 2 DESC" --limit 5
    """  # noqa: D301  # click's mark for text that it must not wrap is a real backspace
    settings = load_settings(flags)
    limit = TABLE_ROWS if limit is None and form == "table" else limit
    with tempfile.TemporaryDirectory(prefix="idcfs-query-") as folder:
        result = Path(folder) / "result.arrow"
        _run(settings, sql, limit, result)
        _print(result, form)


def _run(settings: Settings, sql: str, limit: int | None, result: Path) -> None:
    import trio

    from idcfs.catalog.index import find_index
    from idcfs.catalog.messages import Bound, Query
    from idcfs.processes.child import run_program
    from idcfs.processes.messages import Done

    request = Query(find_index(settings.index).query_tables, settings.query_memory, sql, limit, str(result))

    async def run() -> None:
        with trio.fail_after(settings.query_timeout):
            await run_program("idcfs.catalog.query", request, Done, [Bound])

    try:
        trio.run(run)
    except trio.TooSlowError:
        raise errors.QueryRefused(
            f"the query took more than {settings.query_timeout:g} seconds; give it more with --query-timeout"
        ) from None


def _print(result: Path, form: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.ipc.open_stream(pa.memory_map(str(result))).read_all()
    if form == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        sys.stdout.buffer.write(buffer.getvalue())
        return
    rows = table.to_pylist()
    if form == "json":
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
    elif form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(table.column_names)
        writer.writerows([_text(value) for value in row.values()] for row in rows)
    else:
        _print_table(table.column_names, rows)


def _print_table(names: list[str], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        # Text, because rich takes square brackets in a str for markup.
        table.add_row(*(Text(_text(value)) for value in row.values()))
    Console().print(table)
    click.echo(f"{len(rows):,} rows")


def _text(value: Any) -> str:
    """Return a value as the text of a cell; lists and structures as JSON."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else str(value)
