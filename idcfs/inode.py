"""Inode numbers: 64-bit addresses of folders and files, packed and unpacked; pure.

A number says where its folder or file is, so there is no table of inodes to keep, and the same number means
the same thing in every mount of one index. Bit 63 stays clear (some tools read inode numbers as signed).

    files    0 1 | series row: 32 bits | instance: 30 bits
    folders  0 0 | facet: 6 | generation: 20 | level: 4 | group: 32

A file is a row of the table of all series and a place in that series' listing. It does not say through which
view it was found: every view shares one page cache. A folder belongs to a generation of a view; its level is
0 for the view's root, and its group counts the folders of a level in the view's order.

A facet is something idcfs adds to a folder: its hidden `.idc` folder and what is in it. A cohort, and each of its
files, is a facet whose group is the cohort's number; the view that it shows has a generation as any other. Each
facet has one provider (`idcfs.tree.provider`), which answers for it.
"""

import functools
from enum import IntEnum
from typing import NamedTuple

ROOT = 1
"""FUSE's number for the root of a mount; stands for the root folder of generation 0."""

MAX_SERIES = (1 << 32) - 1
MAX_INSTANCE = (1 << 30) - 1
MAX_FACET = (1 << 6) - 1
MAX_GENERATION = (1 << 20) - 1
MAX_LEVEL = (1 << 4) - 1
MAX_GROUP = (1 << 32) - 1

_FILE = 1 << 62


class Facet(IntEnum):
    """What of a folder an address means; the values are part of inode numbers and never change.

    The files and folders in `.idc` have the values that `idcfs.tree.control_files` gives them.
    """

    FOLDER = 0
    CONTROL = 1
    COHORTS = 7
    COHORT = 8
    QUERY = 9
    ERROR = 10
    SUMMARY = 11


class FolderAddress(NamedTuple):
    """A folder of a view, or a facet of it."""

    generation: int
    level: int
    group: int
    facet: int = Facet.FOLDER


class FileAddress(NamedTuple):
    """An instance of a series."""

    series: int
    instance: int


def pack_folder(generation: int, level: int, group: int, facet: int = Facet.FOLDER) -> int:
    """The inode number of a folder or of a facet of it.

    Raises:
        OverflowError: a part does not fit its bits.
    """
    if not (0 <= generation <= MAX_GENERATION and 0 <= level <= MAX_LEVEL and 0 <= group <= MAX_GROUP):
        raise OverflowError(f"no inode number for generation {generation}, level {level}, group {group}")
    # The root packs to 0, which FUSE does not allow; 1 is free because level 0 has one group only.
    return (facet << 56 | generation << 36 | level << 32 | group) or ROOT


def pack_file(series: int, instance: int) -> int:
    """The inode number of an instance of a series.

    Raises:
        OverflowError: a part does not fit its bits.
    """
    if not (0 <= series <= MAX_SERIES and 0 <= instance <= MAX_INSTANCE):
        raise OverflowError(f"no inode number for series row {series}, instance {instance}")
    return _FILE | series << 30 | instance


def generation_of(number: int) -> int:
    """The generation in an inode number; 0 for a file, which belongs to none."""
    return 0 if number & _FILE else number >> 36 & MAX_GENERATION


@functools.lru_cache(maxsize=1024)  # The requests for one folder come one after the other.
def unpack(number: int) -> FolderAddress | FileAddress:
    """The address that an inode number packs.

    Raises:
        ValueError: idcfs never packs this number.
    """
    if number == ROOT:
        number = 0
    if not 0 <= number < _FILE << 1:
        raise ValueError(f"no inode number {number}")
    if number & _FILE:
        return FileAddress(number >> 30 & MAX_SERIES, number & MAX_INSTANCE)
    return FolderAddress(number >> 36 & MAX_GENERATION, number >> 32 & MAX_LEVEL, number & MAX_GROUP, number >> 56)
