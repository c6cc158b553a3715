"""Users' SQL, run where it can do no harm; a child process of its own.

    python -m idcfs.catalog.query < specification

The SQL sees the index's tables and nothing else: no other file, no network, no extension, one SELECT, bounded
memory and threads, no temporary files. Time is the parent's to bound: it ends this process.
"""

import os
import resource
from typing import Any

import duckdb
import pyarrow as pa

from idcfs.catalog import build
from idcfs.catalog.worker import Tell, serve
from idcfs.errors import QueryRefused

THREADS = 2
"""Threads of a query: the machine stays usable, and the whole index needs no more."""

NICENESS = 10

_NOT_A_SELECT = "not a SELECT: a query is one SELECT, or WITH ... SELECT"
_FIRST_WORDS = frozenset({"select", "with", "from", "values", "table", "("})


def limit_resources(memory: int) -> None:
    """Bound this process: *memory* is its address space in bytes, because duckdb's own limit does not hold."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def open_sandbox(tables: dict[str, str], memory: int) -> build.Connection:
    """A connection that can read the index's tables and do nothing else (duckdb's guide "Securing DuckDB").

    Raises:
        IndexUnusable: a table is not readable.
    """
    connection = build.connect(tables)
    allowed = ", ".join(map(build.literal, tables.values()))
    for setting in (
        f"threads = {THREADS}",
        # Below the process' own limit, so that a query is more often refused than ended.
        f"memory_limit = '{memory // 2 >> 20}MiB'",
        "temp_directory = ''",
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        f"allowed_paths = [{allowed}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def bind(connection: build.Connection, sql: str) -> Any:
    """The relation of the one SELECT that *sql* must be; nothing of it has run.

    Raises:
        QueryRefused: it does not parse or bind, or is something else; duckdb's words say where.
    """
    try:
        statements = connection.extract_statements(sql)
        if not statements:
            raise QueryRefused("the query is empty: write a SELECT")
        if len(statements) > 1:
            raise QueryRefused("more than one statement: a query is one SELECT")
        if statements[0].type != duckdb.StatementType.SELECT or _first_word(sql) not in _FIRST_WORDS:
            raise QueryRefused(_NOT_A_SELECT)
        relation = connection.sql(statements[0].query)
    except (duckdb.Error, UnicodeError, RuntimeError) as error:
        raise QueryRefused(str(error)) from error
    if relation is None:
        raise QueryRefused(_NOT_A_SELECT)
    return relation


def _first_word(sql: str) -> str:
    """The first token; duckdb counts PRAGMA, SHOW, DESCRIBE and CALL among the SELECTs."""
    text = sql.encode()
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    rest = text[starts[0] :].decode("utf-8", "replace") if starts else ""
    if rest.startswith("("):
        return "("
    word = rest.split(maxsplit=1)[0] if rest else ""
    return "".join(letter for letter in word if letter.isalpha() or letter == "_").lower()


def run_query(specification: dict[str, Any], tell: Tell) -> None:
    """Run a query.

    The specification has `tables` (names to parquet files), `memory` (bytes), `sql`, `limit` (rows, or None for all)
    and `result`, the Arrow file to write. The one message is ``{"step": "bound"}``, once the query is sound.
    """
    limit_resources(specification["memory"])
    sandbox = open_sandbox(specification["tables"], specification["memory"])
    relation = bind(sandbox, specification["sql"])
    tell({"step": "bound"})
    try:
        if specification["limit"] is not None:
            relation = relation.limit(specification["limit"])
        batches = build.arrow_reader(relation)
        with pa.OSFile(specification["result"], "wb") as file, pa.ipc.new_stream(file, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    except (duckdb.Error, RuntimeError, MemoryError, pa.ArrowException) as error:
        raise QueryRefused(str(error) or "the query needs more memory than a query may take") from error


if __name__ == "__main__":
    serve(run_query)
