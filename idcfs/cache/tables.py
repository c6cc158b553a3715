"""The tables of a cache's database: the one module that knows diskcache's schema (of version 5.6.3), in SQL.

diskcache documents its calls and not its tables. They are used directly for what it has no call for: to find a key by
its prefix, to note many uses at once, and to check and repair a cache while others use it. `Tables` stay in the thread
that opens them. Each call blocks on files, and a call that writes waits for others who write.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from idcfs.cache.disk import INLINE_BYTES

NAME = "cache.db"
"""What diskcache calls the database."""

ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What a call raises if the database is missing, locked or damaged; the second if SQLite's message quotes damage."""

_ROWS_AT_ONCE = 64

_COLUMNS = (
    # A database that somebody else wrote may hold values of any length.
    "rowid, CASE WHEN length(key) < 4096 THEN key END, raw, "
    "CASE WHEN length(filename) > 64 THEN '' ELSE filename END, "
    f"CASE WHEN typeof(value) = 'blob' AND length(value) < {INLINE_BYTES} THEN value END, mode, size, "
    "tag IS NULL AND expire_time IS NULL AND (filename IS NULL OR value IS NULL)"
)


class Row(NamedTuple):
    """The row of an entry. Columns may hold values of any type; those that are too long for an entry are left out."""

    number: int
    key: Any
    raw: Any
    file_name: Any
    value: bytes | None
    mode: Any
    size: Any
    rest_is_empty: int


class Tables:
    """The tables, over a connection that `open_tables` makes. Calls raise `ERRORS`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def lock(self) -> None:
        """Begin a transaction: wait until nobody else writes, and keep others from writing until it ends."""
        self._connection.execute("BEGIN IMMEDIATE")

    def defect(self, indexes: bool) -> str | None:
        """Return what SQLite finds wrong in the tables, or also in their *indexes*, if anything is."""
        answer: str = self._first("PRAGMA integrity_check(1)" if indexes else "PRAGMA quick_check(1)")
        return None if answer == "ok" else answer.splitlines()[-1]

    def rebuild_indexes(self) -> None:
        """Build the indexes again from the tables."""
        self._connection.execute("REINDEX")

    def has_prefix(self, prefix: str) -> bool:
        """Return whether there is a key that starts with *prefix*."""
        sql = "SELECT 1 FROM Cache WHERE key >= ? AND key < ? AND raw = 1 LIMIT 1"
        return bool(self._first(sql, prefix, prefix + "\U0010ffff"))

    def note_uses(self, uses: Mapping[str, float]) -> None:
        """Store when keys were used, in seconds since the epoch; diskcache evicts the entries with the oldest time."""
        times = [(time, key) for key, time in uses.items()]
        with self._connection:
            self.lock()
            self._connection.executemany("UPDATE Cache SET store_time = ? WHERE key = ? AND raw = 1", times)

    def count(self) -> int:
        """Return the number of entries."""
        return int(self._first("SELECT count(*) FROM Cache"))

    def totals_are_right(self) -> bool:
        """Return whether the number and size of all entries, which diskcache keeps, are those of its rows."""
        count = "(SELECT value FROM Settings WHERE key = 'count') IS (SELECT count(*) FROM Cache)"
        size = "(SELECT value FROM Settings WHERE key = 'size') IS (SELECT total(size) FROM Cache)"
        return bool(self._first(f"SELECT {count} AND {size}"))

    def correct_totals(self) -> None:
        """Count all entries again."""
        self._connection.execute(
            "REPLACE INTO Settings SELECT 'count', count(*) FROM Cache"
            " UNION ALL SELECT 'size', CAST(total(size) AS INTEGER) FROM Cache"
        )

    def batches(self) -> Iterator[list[Row]]:
        """Yield all rows, a few at a time, which bounds the memory; others may change rows between two batches."""
        last = -(1 << 63)  # SQLite's smallest integer
        while rows := self._rows("rowid > ? ORDER BY rowid LIMIT ?", last, _ROWS_AT_ONCE):
            yield rows
            last = rows[-1].number

    def has(self, row: Row) -> bool:
        """Return whether a row is still there, and the same."""
        return self._rows("rowid = ?", row.number) == [row]

    def delete(self, row: Row) -> bool:
        """Delete a row if it is still there, and the same; return whether it was."""
        with self._connection:
            self.lock()
            if is_there := self.has(row):
                self._connection.execute("DELETE FROM Cache WHERE rowid = ?", (row.number,))
        return is_there

    def file_names(self) -> Iterator[str]:
        """Yield the names of all entries' files, in order. SQLite sorts them on disk if they are many."""
        sql = "SELECT filename FROM Cache WHERE typeof(filename) = 'text' ORDER BY filename"
        return (name for (name,) in self._connection.execute(sql))

    def _first(self, sql: str, *values: str) -> Any:
        """Return the first column of the first row of a result; None if there is no row."""
        row = self._connection.execute(sql, values).fetchone()
        return row and row[0]

    def _rows(self, condition: str, *values: int) -> list[Row]:
        sql = f"SELECT {_COLUMNS} FROM Cache WHERE {condition}"
        return [Row(*columns) for columns in self._connection.execute(sql, values)]


@contextlib.contextmanager
def open_tables(folder: Path, timeout: float, create: bool = False) -> Iterator[Tables]:
    """Open the tables of the cache in *folder*; a call waits *timeout* seconds for others who write.

    With *create*, a database without tables is made where there is none.

    Raises:
        sqlite3.Error: there is no database, or it is damaged.
    """
    uri = f"{(folder / NAME).absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    with contextlib.closing(sqlite3.connect(uri, timeout, isolation_level=None, uri=True)) as connection:
        # Damaged text would otherwise end a check that looks for it.
        connection.text_factory = lambda text: text.decode(errors="replace")
        # diskcache changes rows by number. Where rows have none it would change nothing, without an error.
        if connection.execute("SELECT 1 FROM pragma_table_info('Cache') WHERE name = 'rowid' AND NOT pk").fetchone():
            raise sqlite3.DatabaseError("its rows have no numbers")
        yield Tables(connection)
