"""A view: a set of series in a layout, searched in its tables; synchronous, no network, no SQL.

The groups of a level (its folders) are sorted by their whole paths, so the children of a folder are a run of the next
level, sorted by name. Each group of the last level is a series; level 0 is the root alone.
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
"""The column of the last level's table that has the row in the table of all series."""

INNER_SCHEMA = pa.schema([("name", pa.binary()), ("first_child", pa.uint32())])
LAST_SCHEMA = pa.schema([("name", pa.binary()), ("series", pa.uint32())])

DESCRIPTION = "view.json"


class View:
    """The tables of one view, opened.

    Args:
        folder: the one that `catalog.build.build_view` wrote.
        cache: keeps batches; shared with the other tables of the catalogue.

    Raises:
        CatalogueDamaged: a file is not what was written; from every method too.
    """

    def __init__(self, folder: Path, cache: BatchCache) -> None:
        description = read_description(folder / DESCRIPTION)
        rows, self.template = description["rows"], str(description["template"])
        self.columns = frozenset(description["columns"])
        self.counts: Mapping[str, int] = description["counts"]
        self._levels = [Table(folder / level_file(number), cache) for number in range(1, len(rows) + 1)]
        if [len(table) for table in self._levels] != rows:
            raise CatalogueDamaged(f"{folder}: a level has another number of rows than was written")
        self.depth = len(rows)

    def close(self) -> None:
        """Close the files."""
        for table in self._levels:
            table.close()

    def groups(self, level: int) -> int:
        """Return the number of folders of *level*."""
        return len(self._levels[level - 1]) if level else 1

    def children(self, level: int, group: int) -> range:
        """Return the groups of the next level that are in a folder; none for a series."""
        if level == self.depth:
            return range(0)
        return range(self._first_child(level, group), self._first_child(level, group + 1))

    def name(self, level: int, group: int) -> bytes:
        """Return the name of a folder below the root."""
        return self._levels[level - 1].value(NAME, group)  # type: ignore[no-any-return]  # a string column

    def names(self, level: int, groups: range) -> list[bytes]:
        """Return the names of a run of folders below the root."""
        return self._levels[level - 1].values(NAME, groups.start, groups.stop)

    def child_counts(self, level: int, groups: range) -> list[int]:
        """Return the number of children of each of a run of folders."""
        if level == self.depth or not groups:
            return [0] * len(groups)
        firsts = self._levels[level - 1].values(FIRST_CHILD, groups.start, groups.stop)
        firsts.append(self._first_child(level, groups.stop))
        return [after - first for first, after in itertools.pairwise(firsts)]

    def find(self, level: int, group: int, name: bytes) -> int | None:
        """Return the group of the next level that is called *name* in a folder, or None."""
        inside = self.children(level, group)
        if not inside:
            return None
        table = self._levels[level]
        found = bisect.bisect_left(inside, name, key=lambda child: table.value(NAME, child)) + inside.start
        return found if found < inside.stop and table.value(NAME, found) == name else None

    def parent(self, level: int, group: int) -> int:
        """Return the group of the level above that contains a folder below the root."""
        if level == 1:
            return 0
        table = self._levels[level - 2]
        firsts = range(len(table))
        return bisect.bisect_right(firsts, group, key=lambda above: table.value(FIRST_CHILD, above)) - 1

    def path(self, level: int, group: int) -> list[bytes]:
        """Return the names from the root, which has none, down to a folder."""
        names: list[bytes] = []
        while level:
            names.append(self.name(level, group))
            group = self.parent(level, group)
            level -= 1
        return names[::-1]

    def series_groups(self, level: int, group: int) -> range:
        """Return the series below a folder, as groups of the last level."""
        first, after = group, group + 1
        for number in range(level, self.depth):
            first, after = self._first_child(number, first), self._first_child(number, after)
        return range(first, after)

    def series_row(self, group: int) -> int:
        """Return the row of a group of the last level in the table of all series."""
        return self._levels[-1].value(SERIES_ROW, group)  # type: ignore[no-any-return]  # a number column

    def _first_child(self, level: int, group: int) -> int:
        if group == self.groups(level):
            return self.groups(level + 1)
        return self._levels[level - 1].value(FIRST_CHILD, group) if level else 0


def level_file(number: int) -> str:
    """Return the name of the file of level *number*, counted from 1."""
    return f"level{number}.arrow"
