"""The sandbox for users' SQL; runs in a child process, which it limits.

The SQL can read the index's tables and nothing else: no other file, no network, no extension, one SELECT, bounded
memory and threads, no temporary files. The parent bounds the time, by killing the child.
"""

import contextlib
import ctypes
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from idcfs.catalog import build
from idcfs.catalog.index import REQUIRED
from idcfs.catalog.landlock import confine_writes
from idcfs.errors import IndexUnusable, QueryRefused

THREADS = 2
"""Threads of a query: enough for the whole index, and few enough to keep the machine usable."""

NICENESS = 10

MAX_MESSAGE = 4000
"""Characters of DuckDB's messages that are passed on; its own have a few hundred."""

_M_ARENA_MAX = -8
"""glibc's option for the number of its arenas (malloc.h); other C libraries have none."""

_OUT_OF_MEMORY = (duckdb.OutOfMemoryException, MemoryError, RuntimeError)
"""The errors of too little memory; a RuntimeError means that a thread cannot be started."""

_NODE = re.compile(r'"type":"([A-Z_]+_NODE)"')
_READING_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
"""The nodes of a query that only reads, in DuckDB's serialization; a COPY or INSERT inside WITH has others."""

_NOT_A_SELECT = "not a SELECT: a query is one SELECT, or WITH ... SELECT"
_FIRST_WORDS = frozenset({"select", "with", "from", "values", "table", "("})


def limit_resources(memory: int, folder: Path) -> None:
    """Limit this process.

    Args:
        memory: bytes of its address space, because DuckDB exceeds its own limit.
        folder: the only one it may write to, because DuckDB's settings that forbid writing have had holes; not
            enforced where the kernel has no Landlock.
    """
    confine_writes(folder)
    os.nice(NICENESS)
    # An arena for each thread, and Arrow's own allocator, reserve far more address space than they use.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    pa.set_memory_pool(pa.system_memory_pool())
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def connect_bounded(tables: dict[str, str], memory: int) -> build.Connection:
    """Return a connection to the tree's tables that stays below *memory* bytes and writes no temporary files.

    Raises:
        IndexUnusable: a table is not readable.
        QueryRefused: *memory* is too little to start.
    """
    try:
        connection = build.connect({name: tables[name] for name in REQUIRED}, THREADS)
        # Half of the process' own limit, so that a query is more often refused by DuckDB than killed.
        for setting in (f"memory_limit = '{memory // 2 >> 20}MiB'", "temp_directory = ''"):
            connection.execute(f"SET {setting}")
    except (IndexUnusable, *_OUT_OF_MEMORY) as error:
        if isinstance(error, IndexUnusable) and not isinstance(error.__cause__, _OUT_OF_MEMORY):
            raise
        raise QueryRefused(f"{memory >> 20} MiB are too little for any query: set query_memory to more") from error
    return connection


def open_sandbox(tables: dict[str, str], memory: int) -> build.Connection:
    """Return a connection that can only read the index's tables (DuckDB's guide "Securing DuckDB").

    Raises:
        IndexUnusable: a table that the tree is built from is not readable.
        QueryRefused: *memory* is too little to start.
    """
    connection = connect_bounded(tables, memory)
    for name in tables.keys() - REQUIRED.keys():
        # A broken table, such as one that idc-index has fetched only half, only fails queries that read it.
        with contextlib.suppress(duckdb.Error):
            source = f"read_parquet({build.literal(tables[name])})"
            connection.execute(f"CREATE VIEW {build.identifier(name)} AS SELECT * FROM {source}")
    allowed = ", ".join(map(build.literal, tables.values()))
    for setting in (
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
    """Return the relation of *sql*, which must be one SELECT; nothing of it is run.

    Raises:
        QueryRefused: it does not parse or bind, or is not one SELECT; DuckDB's message says where.
    """
    with refusals():
        statements = connection.extract_statements(sql)
        if not statements:
            raise QueryRefused("the query is empty: write a SELECT")
        if len(statements) > 1:
            raise QueryRefused("more than one statement: a query is one SELECT")
        if statements[0].type != duckdb.StatementType.SELECT or _first_word(sql) not in _FIRST_WORDS:
            raise QueryRefused(_NOT_A_SELECT)
        _check_reads_only(connection, statements[0].query)
        relation = _relation(connection, sql, statements[0].query)
    if relation is None:
        raise QueryRefused(_NOT_A_SELECT)
    return relation


def _check_reads_only(connection: build.Connection, statement: str) -> None:
    """Make sure, before a statement is bound, that all its parts only read."""
    ((serialized,),) = connection.execute("SELECT CAST(json_serialize_sql(?) AS VARCHAR)", [statement]).fetchall()
    nodes = set(_NODE.findall(serialized))
    if not nodes or nodes - _READING_NODES:
        raise QueryRefused(_NOT_A_SELECT)


def _relation(connection: build.Connection, sql: str, statement: str) -> Any:
    try:
        return connection.sql(statement)
    except (duckdb.BinderException, duckdb.CatalogException):
        try:
            # It fails again before anything runs, and this error has a line number, counted within the statement.
            connection.execute(statement)
        except duckdb.Error as error:
            above = sql.partition(statement)[0].count("\n")
            message = re.sub(r"(?m)^LINE (\d+):", lambda line: f"LINE {int(line[1]) + above}:", str(error))
            raise QueryRefused(_cut(message)) from error
        raise


def _first_word(sql: str) -> str:
    """Return the first token, because DuckDB counts PRAGMA, SHOW, DESCRIBE and CALL among the SELECTs."""
    text = sql.encode()
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    rest = text[starts[0] :].decode("utf-8", "replace") if starts else ""
    if rest.startswith("("):
        return "("
    word = rest.split(maxsplit=1)[0] if rest else ""
    return "".join(letter for letter in word if letter.isalpha() or letter == "_").lower()


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Raise the errors of a query that is parsed or runs as refusals.

    Raises:
        QueryRefused: with DuckDB's message, or because of too little memory.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        # DuckDB's own message recommends settings that a query cannot change.
        raise QueryRefused("the query needs more memory than it may take: set query_memory to more") from error
    except (duckdb.Error, RuntimeError, UnicodeError, pa.ArrowException) as error:
        raise QueryRefused(_cut(str(error))) from error


def _cut(message: str) -> str:
    # The daemon reads the message, which a query can make long: error(repeat('x', 1000000000)).
    return message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + " ..."
