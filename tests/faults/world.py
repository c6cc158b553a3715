"""A tree over a server with faults, a mount of it, and what is wrong with what the mount shows."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from idcfs.layout import DEFAULT_TEMPLATE, parse_template
from tests import tree_model
from tests.faults.server import FaultServer
from tests.index_factory import INDEX_SCHEMA, Row, instances, make_index, objects
from tests.mounting import Commands, status

Record = Callable[[str, object], None]
"""pytest's `record_property`: what it is given is printed at the end."""


@dataclass(frozen=True)
class World:
    """Some series, a server that has them, and where they are mounted.

    Attributes:
        rows: the series.
        server: the mirror.
        commands: idcfs, with a home of its own.
        point: where the mount is.
        flags: for the mount.
        template: the layout of the tree.
    """

    rows: Sequence[Row]
    server: FaultServer
    commands: Commands
    point: Path
    flags: Sequence[str | Path]
    template: str

    @property
    def cache(self) -> Path:
        """The cache folder."""
        return self.commands.home / ".cache" / "idcfs"

    @cached_property
    def tree(self) -> Mapping[tree_model.Path, Row]:
        """The series by the names of their folders."""
        return tree_model.tree(self.rows, parse_template(self.template, frozenset(INDEX_SCHEMA.names)))

    @cached_property
    def files(self) -> Mapping[Path, bytes]:
        """What each file holds, by its path below the mountpoint."""
        return {
            Path(os.fsdecode(b"/".join(path))) / instance.name: instance.content
            for path, row in self.tree.items()
            for instance in instances(row)
        }

    @cached_property
    def folders(self) -> Mapping[Path, list[str]]:
        """The names in each folder, sorted, by its path below the mountpoint; cohorts apart."""
        found: dict[Path, set[str]] = {}
        for path in self.files:
            for inner in (path, *path.parents[:-1]):
                found.setdefault(inner.parent, set()).add(inner.name)
        return {folder: sorted(names) for folder, names in found.items()}

    @contextlib.contextmanager
    def mounted(self) -> Iterator[int]:
        """Mount for the length of the context; gives the daemon's process."""
        with self.commands.mounted(self.point, *self.flags):
            yield int(status(self.point)["pid"])

    def wrong(self) -> list[str]:
        """What the mount shows that is not so: of every name and every byte, none of them from the kernel's pages."""
        found = []
        for folder, names in self.folders.items():
            shown = sorted(set(os.listdir(self.point / folder)) - ({"cohorts"} if folder == Path() else set()))
            if shown != names:
                found.append(f"{folder} has {shown}, not {names}")
        self.drop_pages()
        for path, content in self.files.items():
            data = (self.point / path).read_bytes()
            if data != content:
                at = next((at for at, (one, other) in enumerate(zip(data, content, strict=False)) if one != other), -1)
                found.append(f"{path} has {len(data)} of {len(content)} bytes, the first wrong one at {at}")
        return found

    def drop_pages(self) -> None:
        """Have the kernel forget the bytes of all files."""
        for path in self.files:
            drop_pages(self.point / path)


@contextlib.contextmanager
def world(folder: Path, rows: Sequence[Row], *flags: str | Path, template: str = DEFAULT_TEMPLATE) -> Iterator[World]:
    """A world whose files are in *folder*; *flags* are more of the mount's, which is yet to be made."""
    make_index(folder / "index", rows)
    commands = Commands(folder / "home")
    commands.home.mkdir()
    with FaultServer({f"{bucket}/{key}": data for bucket, key, data in objects(rows)}) as server:
        wanted = ("--index", folder / "index", "--mirror", server.url, "--layout", template, *flags)
        yield World(rows, server, commands, folder / "idc", wanted, template)


def drop_pages(path: Path) -> None:
    """Have the kernel forget the bytes of a file."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
