"""The small tree of the mounts in these tests, with a series for each operation."""

from pathlib import Path
from typing import NamedTuple

from tests.index_factory import Instance, Row, instances

SMALL = 600_000
"""Bytes of an object that is fetched whole."""

LARGE = 1_500_000
"""Bytes of an object that is fetched in several ranges."""

SIZES = (SMALL, LARGE, 700, 800, 900)

PAGE_KEYS = 2
"""Keys in a page of the server's listings: a series takes three."""


class Series(NamedTuple):
    """A series of the tree."""

    row: Row

    def folder(self, point: Path) -> Path:
        """The folder of the series in a mount."""
        row = self.row
        return point / f"{row.collection}" / f"{row.patient}" / f"{row.study}" / f"{row.modality}_{row.series}"

    @property
    def names(self) -> list[str]:
        """The names of its instances, sorted."""
        return [instance.name for instance in instances(self.row)]

    def instance(self, size: int) -> Instance:
        """The instance with *size* bytes."""
        return next(instance for instance in instances(self.row) if len(instance.content) == size)


def series(name: str, bucket: str = "idc-open-data") -> Series:
    """Make the series of collection *name*."""
    return Series(Row(collection=name, patient="patient", sizes=SIZES, bucket=bucket))
