"""The index's columns of series and of the folders above them; belongs to the event loop.

They are read from `attributes.parquet`, a row group at a time, in a thread.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import trio
from cachetools import LRUCache

from idcfs.catalog.catalogue import Catalogue
from idcfs.catalog.view import View
from idcfs.errors import CatalogueDamaged
from idcfs.layout import Column, parse_template

LEVEL_COLUMNS: dict[str, tuple[str, ...]] = {
    "collection_id": ("collection_id",),
    "PatientID": ("PatientID", "PatientSex"),
    "StudyInstanceUID": ("StudyInstanceUID", "StudyDate", "StudyDescription", "PatientAge"),
    "SeriesInstanceUID": (),
}
"""The columns of collections and of DICOM's levels (PS3.3 §A.1.2), by the identifier of each; a series has all."""

LEVELS = tuple(LEVEL_COLUMNS)

GROUPS = 4
"""Row groups that stay in memory, a few megabytes each."""


class Attributes:
    """The columns of all series of a catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._file: pq.ParquetFile | None = None
        self._groups = LRUCache[int, Any](GROUPS)
        # A parquet file is not for two threads at a time.
        self._reading = trio.Lock()

    async def of_folder(self, view: View, level: int, group: int) -> dict[str, Any]:
        """The columns of a folder's level, those that have a value; takes seconds the first time of all.

        Raises:
            CatalogueDamaged: they cannot be read.
            IndexUnusable, CacheUnusable: the file of the attributes cannot be built.
        """
        row = await self._row(view.series_row(view.series_groups(level, group).start))
        if level == view.depth:
            return {name: value for name, value in row.items() if value is not None}
        named = named_columns(view, level)
        # A folder is of the deepest level that its path names, and of those above it.
        deepest = deepest_level(named)
        above = LEVELS[: LEVELS.index(deepest) + 1] if deepest else ()
        wanted = [*named, *(column for each in above for column in LEVEL_COLUMNS[each])]
        return {name: row[name] for name in dict.fromkeys(wanted) if row.get(name) is not None}

    async def _row(self, number: int) -> dict[str, Any]:
        path = await self._catalogue.attributes_file()
        async with self._reading:
            try:
                return await trio.to_thread.run_sync(self._read, path, number)
            except Exception as error:  # Arrow raises all kinds of things over a damaged file.
                self._file = None
                raise CatalogueDamaged(f"the attributes of the catalogue are not readable: {error}") from error

    def _read(self, path: Path, row: int) -> dict[str, Any]:
        if self._file is None:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        # All row groups but the last are equally long.
        number, at = divmod(row, self._file.metadata.row_group(0).num_rows)
        if number not in self._groups:
            self._groups[number] = self._file.read_row_group(number)
        return dict(self._groups[number].slice(at, 1).to_pylist()[0])


def named_columns(view: View, level: int) -> list[str]:
    """The columns that the path of a folder of *level* names."""
    levels = parse_template(view.template, view.columns).levels[:level]
    return [part.name for parts in levels for part in parts if isinstance(part, Column)]


def deepest_level(columns: list[str]) -> str | None:
    """The deepest of `LEVELS` among *columns*; None if there is none."""
    return next((level for level in reversed(LEVELS) if level in columns), None)
