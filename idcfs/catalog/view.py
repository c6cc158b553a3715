"""A view: a set of series in a layout, searched in its tables; synchronous, no network, no SQL.

The groups of a level (its folders) stand in the order of their whole paths, so the children of a folder are a
run of the next level, sorted by name. The groups of the last level are series; level 0 is the one root.
"""

import bisect
import itertools
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from idcfs.catalog.description import read_description
from idcfs.catalog.table import BatchCache, Table
from idcfs.errors import CatalogueDamaged

NAME, FIRST_CHILD = 0, 1
"""Columns of the tables of the upper levels."""

SERIES_ROW = 1
"""The column of the last level's table that holds the row in the table of all series."""

INNER_SCHEMA = pa.schema([("name", pa.binary()), ("first_child", pa.uint32())])
LAST_SCHEMA = pa.schema([("name", pa.binary()), ("series", pa.uint32())])

DESCRIPTION = "view.json"


class View:
    """The tables of one view, opened.

    Args:
        folder: what `write_view` wrote.
        cache: where batches are kept, shared with the other tables of the catalogue.

    Raises:
        CatalogueDamaged: here and from every method, when a file is not what was written.
    """

    def __init__(self, folder: Path, cache: BatchCache) -> None:
        description = read_description(folder / DESCRIPTION)
        rows, self.template = description["rows"], str(description["template"])
        self.columns = frozenset(description["columns"])
        self.counts: Mapping[str, int] = description["counts"]
        self._levels = [Table(folder / level_file(number), cache) for number in range(1, len(rows) + 1)]
        if [len(table) for table in self._levels] != rows:
            raise CatalogueDamaged(f"{folder}: a level has not the number of rows it was written with")
        self.depth = len(rows)

    def close(self) -> None:
        """Close the files."""
        for table in self._levels:
            table.close()

    def groups(self, level: int) -> int:
        """How many folders *level* has."""
        return len(self._levels[level - 1]) if level else 1

    def children(self, level: int, group: int) -> range:
        """The groups of the next level that are inside a folder; empty for a series."""
        if level == self.depth:
            return range(0)
        if level == 0:
            return range(len(self._levels[0]))
        return range(self._first_child(level, group), self._first_child(level, group + 1))

    def name(self, level: int, group: int) -> bytes:
        """The name of a folder below the root."""
        return self._levels[level - 1].value(NAME, group)  # type: ignore[no-any-return]  # a string column

    def names(self, level: int, groups: range) -> list[bytes]:
        """The names of a run of folders below the root."""
        return self._levels[level - 1].values(NAME, groups.start, groups.stop)

    def child_counts(self, level: int, groups: range) -> list[int]:
        """How many folders each of a run of folders holds."""
        if level == self.depth or not groups:
            return [0] * len(groups)
        firsts = self._levels[level - 1].values(FIRST_CHILD, groups.start, groups.stop)
        firsts.append(self._first_child(level, groups.stop))
        return [after - first for first, after in itertools.pairwise(firsts)]

    def find(self, level: int, group: int, name: bytes) -> int | None:
        """The group of the next level that has *name* inside a folder, or None."""
        inside = self.children(level, group)
        table = self._levels[level] if inside else None
        if table is None:
            return None
        found = bisect.bisect_left(inside, name, key=lambda child: table.value(NAME, child)) + inside.start
        return found if found < inside.stop and table.value(NAME, found) == name else None

    def parent(self, level: int, group: int) -> int:
        """The group of the level above that holds a folder below the root."""
        if level == 1:
            return 0
        table = self._levels[level - 2]
        firsts = range(len(table))
        return bisect.bisect_right(firsts, group, key=lambda above: table.value(FIRST_CHILD, above)) - 1

    def path(self, level: int, group: int) -> list[bytes]:
        """The names from below the root down to a folder."""
        names: list[bytes] = []
        while level:
            names.append(self.name(level, group))
            group = self.parent(level, group)
            level -= 1
        return names[::-1]

    def series_groups(self, level: int, group: int) -> range:
        """The series below a folder, as groups of the last level."""
        first, after = group, group + 1
        for number in range(level, self.depth):
            if number == 0:
                first, after = 0, len(self._levels[0])
            else:
                first, after = self._first_child(number, first), self._first_child(number, after)
        return range(first, after)

    def series_row(self, group: int) -> int:
        """The row in the table of all series of a group of the last level."""
        return self._levels[-1].value(SERIES_ROW, group)  # type: ignore[no-any-return]  # a number column

    def _first_child(self, level: int, group: int) -> int:
        table = self._levels[level - 1]
        if group == len(table):
            return len(self._levels[level])
        return table.value(FIRST_CHILD, group)  # type: ignore[no-any-return]  # a number column


def level_file(number: int) -> str:
    """The name of the file that holds level *number*, counted from 1."""
    return f"level{number}.arrow"
