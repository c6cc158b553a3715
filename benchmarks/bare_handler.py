"""A minimal pyfuse3 handler that serves the upper levels of the tree from memory; `find` is compared with it.

    python -m benchmarks.bare_handler CACHE MOUNTPOINT DEPTH

It does no search and no checks: each entry is a name, an inode number and a link count, made before it mounts.
"""

import errno
import gc
import stat
import sys
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, ReaddirToken, RequestContext

from idcfs.catalog.catalogue import MAIN_GENERATION, view_key
from idcfs.catalog.description import FORMAT
from idcfs.catalog.index import find_index
from idcfs.catalog.table import BatchCache
from idcfs.catalog.view import View
from idcfs.inode import pack_folder
from idcfs.mount.daemon import MAX_TASKS, MIN_TASKS
from idcfs.mount.fuse import FOR_EVER

Entry = tuple[bytes, int, int]
"""A name, its inode number, and its link count."""


class BareHandler(pyfuse3.Operations):
    """Answers from a dictionary of folders."""

    supports_dot_lookup = False

    def __init__(self, tree: dict[int, list[Entry]]) -> None:
        super().__init__()
        self._tree = tree
        self._entry = EntryAttributes()
        self._entry.st_mode = stat.S_IFDIR | 0o555
        self._entry.entry_timeout = self._entry.attr_timeout = FOR_EVER

    def _fill(self, inode: int, links: int) -> EntryAttributes:
        self._entry.st_ino = inode
        self._entry.st_nlink = links
        return self._entry

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Answer stat."""
        return self._fill(inode, 2 + len(self._tree.get(inode, ())))

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Answer a look-up; there are few, because the kernel keeps the entries of a listing with their attributes."""
        for found, inode, links in self._tree.get(parent_inode, ()):
            if found == name:
                return self._fill(inode, links)
        raise FUSEError(errno.ENOENT)

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a folder."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Fill the kernel's buffer."""
        for name, inode, links in self._tree.get(fh, [])[start_id:]:
            start_id += 1
            if not pyfuse3.readdir_reply(token, name, self._fill(inode, links), start_id):
                return


def _read_tree(cache: Path, depth: int) -> dict[int, list[Entry]]:
    catalogue = cache / "catalogue" / f"{find_index().fingerprint}-{FORMAT}"
    view = View(catalogue / "views" / view_key().digest, BatchCache(1 << 30))
    tree: dict[int, list[Entry]] = {}
    for level in range(depth):
        for group in range(view.groups(level)):
            below = view.children(level, group)
            names = view.names(level + 1, below)
            counts = view.child_counts(level + 1, below)
            tree[pack_folder(MAIN_GENERATION, level, group)] = [
                (name, pack_folder(MAIN_GENERATION, level + 1, child), 2 + count)
                for name, child, count in zip(names, below, counts, strict=True)
            ]
    view.close()
    return tree


def main(cache: Path, mountpoint: Path, depth: int) -> None:
    handler = BareHandler(_read_tree(cache, depth))
    # Otherwise each garbage collection would go through the whole tree.
    gc.collect()
    gc.freeze()
    pyfuse3.init(handler, str(mountpoint), {"fsname=bare"})
    try:
        print("mounted", flush=True)
        trio.run(lambda: pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS))
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
