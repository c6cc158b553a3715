"""What the kernel was given of files before anybody read them; belongs to the event loop.

What readers find in the kernel's pages they do not ask for, so it is not seen here. The last page of every fourth file,
and of every fourth block of a large one, is left out, so that the reader's progress can be seen: that file or block is
*observed*.
"""

from cachetools import LRUCache

from idcfs.inode import pack_file
from idcfs.pages.client import PAGE, PageCache
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.reading.listings import Listing
from idcfs.reading.policy import BLOCK, SMALL_OBJECT, Extent

OBSERVED_EVERY = 4
"""One file, or block, of so many is observed; to ask for its last page takes a third of a reader's time for a file."""

_FILES_REMEMBERED = 4096
"""Files of which it is remembered that the kernel has them; the windows of several walks."""


class FilledFiles:
    """The files that *pages* have been given; extents that the kernel has are forgotten in *arena*."""

    def __init__(self, pages: PageCache, arena: Arena) -> None:
        self._pages = pages
        self._arena = arena
        self._observed = LRUCache[int, bool](_FILES_REMEMBERED)

    def fill(self, extent: Extent, listing: Listing, lease: Lease) -> None:
        """Hand what is read next, and nobody waits for, to the kernel, which then need not ask for it."""
        size = listing.sizes[extent.instance]
        is_whole = extent.length == size
        if not is_whole and size <= SMALL_OBJECT:
            # A head: whoever scans headers reads little more than the kernel asks for anyway.
            return
        # A walk comes through files, a stream through blocks.
        number = extent.instance if is_whole else extent.offset // BLOCK
        is_observed = number % OBSERVED_EVERY == 0
        inode = pack_file(extent.series, extent.instance)

        def filled() -> None:
            if is_whole:
                self._observed[inode] = is_observed
            if not is_observed:
                self._arena.kept.forget(extent)
            elif not is_whole and extent in self._arena.kept:
                self._keep_apart(extent, lease)

        self._pages.fill(inode, extent.offset, lease, is_observed, filled)

    def _keep_apart(self, extent: Extent, lease: Lease) -> None:
        """Keep a block, whose last page will be asked for, without the run of blocks that it came in."""
        copy = self._arena.take_now(len(lease), self._arena.reserve)
        self._arena.kept.forget(extent)
        if copy is not None:
            with copy:
                copy.view[:] = lease.view
                self._arena.kept.add(extent, copy)

    def has(self, series: int, instance: int) -> bool:
        """Whether the kernel was given a small file, but for the last page of an observed one."""
        return pack_file(series, instance) in self._observed

    def is_observed(self, series: int, instance: int) -> bool | None:
        """Whether reading a small file to its end will be seen; None if all of its reads will."""
        return self._observed.get(pack_file(series, instance))

    def note_read(self, series: int, instance: int, start: int, size: int) -> None:
        """The kernel asks for bytes of a file from *start* on."""
        if pack_file(series, instance) in self._observed and start < size - 2 * PAGE:
            # It has thrown them out, and others probably too.
            self._observed.clear()
