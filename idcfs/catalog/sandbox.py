"""Where users' SQL runs and can do no harm; for a child process, which it bounds.

The SQL sees the index's tables and nothing else: no other file, no network, no extension, one SELECT, bounded
memory and threads, no temporary files. Time is the parent's to bound: it ends the child.
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
"""Threads of a query: the machine stays usable, and the whole index needs no more."""

NICENESS = 10

MESSAGE = 4000
"""Characters of duckdb's words that are told; its own messages have a few hundred."""

_M_ARENA_MAX = -8
"""glibc's name for the number of its arenas (malloc.h); another C library has no such choice."""

_WANT_OF_MEMORY = (duckdb.OutOfMemoryException, MemoryError, RuntimeError)
"""How it shows; the last is a thread that cannot be started."""

_NODE = re.compile(r'"type":"([A-Z_]+_NODE)"')
_READING = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
"""What a query may be made of, in duckdb's serialization; WITH can hold a COPY or an INSERT too, which are others."""

_NOT_A_SELECT = "not a SELECT: a query is one SELECT, or WITH ... SELECT"
_FIRST_WORDS = frozenset({"select", "with", "from", "values", "table", "("})


def limit_resources(memory: int, folder: Path) -> None:
    """Bound this process.

    Args:
        memory: bytes of its address space, because duckdb's own limit does not hold.
        folder: where it may write, because duckdb's settings that forbid it have had holes; anywhere if the kernel
            knows no Landlock.
    """
    confine_writes(folder)
    os.nice(NICENESS)
    # An arena to each thread, and Arrow's own allocator, reserve far more address space than they use.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    pa.set_memory_pool(pa.system_memory_pool())
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def connect_bounded(tables: dict[str, str], memory: int) -> build.Connection:
    """A connection to the tables that the tree is made of, which stays below *memory* and leaves nothing on disk.

    Raises:
        IndexUnusable: a table is not readable.
        QueryRefused: there is too little memory to begin.
    """
    try:
        connection = build.connect({name: tables[name] for name in REQUIRED}, THREADS)
        # Below the process' own limit, so that a query is more often refused than ended.
        for setting in (f"memory_limit = '{memory // 2 >> 20}MiB'", "temp_directory = ''"):
            connection.execute(f"SET {setting}")
    except (IndexUnusable, *_WANT_OF_MEMORY) as error:
        if isinstance(error, IndexUnusable) and not isinstance(error.__cause__, _WANT_OF_MEMORY):
            raise
        raise QueryRefused(f"{memory >> 20} MiB are too little for any query: set query_memory to more") from error
    return connection


def open_sandbox(tables: dict[str, str], memory: int) -> build.Connection:
    """A connection that can read the index's tables and do nothing else (duckdb's guide "Securing DuckDB").

    Raises:
        IndexUnusable: a table that the tree is made of is not readable.
        QueryRefused: there is too little memory to begin.
    """
    connection = connect_bounded(tables, memory)
    for name in tables.keys() - REQUIRED.keys():
        # One that idc-index has fetched only half, say, is of no concern to a query that does without.
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
    """The relation of the one SELECT that *sql* must be; nothing of it has run.

    Raises:
        QueryRefused: it does not parse or bind, or is something else; duckdb's words say where.
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
    """Make sure, before anything is bound, that all parts of a statement only read."""
    ((serialized,),) = connection.execute("SELECT CAST(json_serialize_sql(?) AS VARCHAR)", [statement]).fetchall()
    nodes = set(_NODE.findall(serialized))
    if not nodes or nodes - _READING:
        raise QueryRefused(_NOT_A_SELECT)


def _relation(connection: build.Connection, sql: str, statement: str) -> Any:
    try:
        return connection.sql(statement)
    except (duckdb.BinderException, duckdb.CatalogException):
        try:
            # It fails again before anything runs, and then says where: in the statement, without what is above it.
            connection.execute(statement)
        except duckdb.Error as error:
            above = sql.partition(statement)[0].count("\n")
            told = re.sub(r"(?m)^LINE (\d+):", lambda line: f"LINE {int(line[1]) + above}:", str(error))
            raise QueryRefused(_cut(told)) from error
        raise


def _first_word(sql: str) -> str:
    """The first token; duckdb counts PRAGMA, SHOW, DESCRIBE and CALL among the SELECTs."""
    text = sql.encode()
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    rest = text[starts[0] :].decode("utf-8", "replace") if starts else ""
    if rest.startswith("("):
        return "("
    word = rest.split(maxsplit=1)[0] if rest else ""
    return "".join(letter for letter in word if letter.isalpha() or letter == "_").lower()


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Tell what goes wrong while a query is read or runs as a refusal.

    Raises:
        QueryRefused: in duckdb's words, or for want of memory.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        # duckdb's own advice is on settings that a query cannot make.
        raise QueryRefused("the query needs more memory than it may take: set query_memory to more") from error
    except (duckdb.Error, RuntimeError, UnicodeError, pa.ArrowException) as error:
        raise QueryRefused(_cut(str(error))) from error


def _cut(message: str) -> str:
    # A query can say error(repeat('x', 1000000000)), and the daemon reads what is told.
    return message if len(message) <= MESSAGE else message[:MESSAGE] + " ..."
