"""A tree over a server with faults, a mount of it, and a comparison of the mount with the tree."""

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
"""pytest's `record_property`, whose properties are printed at the end."""


@dataclass(frozen=True)
class World:
    """Some series, a server that has them, and their mountpoint.

    Attributes:
        rows: the series.
        server: the mirror.
        commands: idcfs, with its own home folder.
        point: the mountpoint.
        flags: the flags of the mount.
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
        """The content of each file, by its path below the mountpoint."""
        return {
            Path(os.fsdecode(b"/".join(path))) / instance.name: instance.content
            for path, row in self.tree.items()
            for instance in instances(row)
        }

    @cached_property
    def folders(self) -> Mapping[Path, list[str]]:
        """The sorted names in each folder, by its path below the mountpoint, without cohorts."""
        found: dict[Path, set[str]] = {}
        for path in self.files:
            for inner in (path, *path.parents[:-1]):
                found.setdefault(inner.parent, set()).add(inner.name)
        return {folder: sorted(names) for folder, names in found.items()}

    @contextlib.contextmanager
    def mounted(self) -> Iterator[int]:
        """Mount in this context; yields the daemon's process."""
        with self.commands.mounted(self.point, *self.flags):
            yield int(status(self.point)["pid"])

    def wrong(self) -> list[str]:
        """All differences of the mount from the tree, in every name and every byte; the kernel's pages are not used."""
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
        """Make the kernel drop its pages of all files."""
        for path in self.files:
            drop_pages(self.point / path)


@contextlib.contextmanager
def world(folder: Path, rows: Sequence[Row], *flags: str | Path, template: str = DEFAULT_TEMPLATE) -> Iterator[World]:
    """Make a world with its files in *folder*, not mounted yet; *flags* are more flags of the mount."""
    make_index(folder / "index", rows)
    commands = Commands(folder / "home")
    commands.home.mkdir()
    with FaultServer({f"{bucket}/{key}": data for bucket, key, data in objects(rows)}) as server:
        wanted = ("--index", folder / "index", "--mirror", server.url, "--layout", template, *flags)
        yield World(rows, server, commands, folder / "idc", wanted, template)


def drop_pages(path: Path) -> None:
    """Make the kernel drop its pages of a file."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
