"""How diskcache stores an entry: in its database if the entry is small, else in a file of its own.

diskcache's documented way to change this is a subclass of `Disk`. `EntryDisk` overrides

- `get`, `store` and `fetch`, which would pickle and unpickle: it takes text keys and packed entries, and refuses
  anything else, so that a database that somebody else wrote can neither run code nor name files outside its folder;
- `filename`, which would make two folders for each file;
- `remove`, which would remove a file of any name.

Elsewhere diskcache is used as documented, and `tables` reads and changes its tables beside it. Calls block on files,
and may be made from any thread.
"""

import functools
import io
import itertools
import os
import re
from typing import Any

import diskcache

from idcfs.cache.format import PackedEntry

INLINE_BYTES = 32 << 10
"""Entries below this are in the database, others in files. It is diskcache's own bound, with the header counted."""

INLINE_MODE, FILE_MODE = 1, 2
"""What the column `mode` says of where an entry is: diskcache's numbers for plain values and for files of bytes."""

_FILES_IN_FOLDER = 256
"""Files that share a folder. Measured: making a folder takes as long as making a file."""

_FILE_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")


class EntryRefused(Exception):
    """An entry of the database that this project cannot have written."""


class EntryDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Stores packed entries under text keys, and refuses everything else."""

    def __init__(self, directory: str, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self._folder = directory
        self._named = itertools.count()
        self._shared = os.path.dirname(super().filename()[0])

    def get(self, key: Any, raw: bool) -> str:
        """Return the key from the form that it has in the database."""
        if type(key) is not str or not raw:
            raise EntryRefused("a key that is not text")
        return key

    def store(self, value: tuple[PackedEntry, list[str]], read: bool, key: Any = None) -> tuple[Any, ...]:
        """Write an entry, and return its columns size, mode, filename and value.

        The *value* is the entry, and a list to which the name of its file is added if it gets one.
        """
        entry, names = value
        size = len(entry.header) + len(entry.value)
        if size < INLINE_BYTES:
            return 0, INLINE_MODE, None, b"".join(entry)
        name, path = self.filename()
        names.append(name)
        with _create(path) as file:
            entry.write(file)
        return size, FILE_MODE, name, None

    def filename(self, key: Any = None, value: Any = None) -> tuple[str, str]:
        """Return a name that no file has, and its path."""
        folder, name = os.path.split(super().filename()[0])
        if not next(self._named) % _FILES_IN_FOLDER:
            self._shared = folder
        name = os.path.join(self._shared, name)
        return name, os.path.join(self._folder, name)

    def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> io.FileIO | io.BytesIO:
        """Return a file that holds the entry; the caller closes it."""
        if mode == INLINE_MODE and isinstance(value, bytes):
            return io.BytesIO(value)
        if mode != FILE_MODE or not is_file_name(filename):
            raise EntryRefused(f"a value of mode {mode} in file {filename!r}")
        return io.FileIO(os.path.join(self._folder, filename))

    def remove(self, file_path: Any) -> None:
        """Remove an entry's file."""
        if is_file_name(file_path):
            super().remove(file_path)


def is_file_name(name: Any) -> bool:
    """Return whether this is a name that `EntryDisk` gives files. A database may hold a value of any type instead."""
    return type(name) is str and _FILE_NAME.fullmatch(name) is not None


def _create(path: str) -> io.BufferedWriter:
    while True:
        try:
            return open(path, "xb", opener=functools.partial(os.open, mode=0o600))
        except FileNotFoundError:
            # Whoever removes the last file of a folder removes the folder too, perhaps again before the file is made.
            os.makedirs(os.path.dirname(path), exist_ok=True)
