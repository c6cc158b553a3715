"""Where users' SQL runs and can do no harm; for a child process, which it bounds.

The SQL sees the index's tables and nothing else: no other file, no network, no extension, one SELECT, bounded
memory and threads, no temporary files. Time is the parent's to bound: it ends the child.
"""

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from idcfs.catalog import build
from idcfs.errors import QueryRefused

THREADS = 2
"""Threads of a query: the machine stays usable, and the whole index needs no more."""

NICENESS = 10

_M_ARENA_MAX = -8
"""glibc's name for the number of its arenas (malloc.h); another C library has no such choice."""

_NOT_A_SELECT = "not a SELECT: a query is one SELECT, or WITH ... SELECT"
_FIRST_WORDS = frozenset({"select", "with", "from", "values", "table", "("})


def limit_resources(memory: int) -> None:
    """Bound this process: *memory* is its address space in bytes, because duckdb's own limit does not hold."""
    os.nice(NICENESS)
    # An arena to each thread, and Arrow's own allocator, reserve far more address space than they use.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    pa.set_memory_pool(pa.system_memory_pool())
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def open_sandbox(tables: dict[str, str], memory: int) -> build.Connection:
    """A connection that can read the index's tables and do nothing else (duckdb's guide "Securing DuckDB").

    Raises:
        IndexUnusable: a table is not readable.
    """
    connection = build.connect(tables, THREADS)
    allowed = ", ".join(map(build.literal, tables.values()))
    for setting in (
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


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Tell what goes wrong while a query runs as a refusal.

    Raises:
        QueryRefused: in duckdb's words, or for want of memory.
    """
    try:
        yield
    except (duckdb.Error, RuntimeError, MemoryError, pa.ArrowException) as error:
        raise QueryRefused(str(error) or "the query needs more memory than a query may take") from error
