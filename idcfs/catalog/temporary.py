"""Views that come and go, such as those of cohorts; belongs to the event loop.

Each has its own generation, which a mount uses only once: the kernel moves a folder that appears under a second name,
so a view that replaces another needs other inode numbers. A view that is no longer shown stays open as long as the
kernel, or an open folder, refers to one of its folders.
"""

from idcfs.catalog.view import View
from idcfs.errors import NoSpace
from idcfs.inode import MAX_GENERATION

FIRST_GENERATION = 1 << 16
"""Lower generations belong to the fixed views of an index."""


class _Held:
    def __init__(self, view: View) -> None:
        self.view = view
        self.references = 0
        self.shown = True


class TemporaryViews:
    """The temporary views of a mount, by generation."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        self._next = FIRST_GENERATION

    def __len__(self) -> int:
        return len(self._held)

    def add(self, view: View) -> int:
        """Show a view; returns its generation.

        Raises:
            NoSpace: the generations are used up, after almost a million.
        """
        if self._next > MAX_GENERATION:
            raise NoSpace("this mount has no generation left for another cohort; mount again")
        generation = self._next
        self._next += 1
        self._held[generation] = _Held(view)
        return generation

    def get(self, generation: int) -> View | None:
        """Return the view of a generation, or None if it is not open."""
        held = self._held.get(generation)
        return None if held is None else held.view

    def replace(self, generation: int, view: View) -> None:
        """Replace a damaged view by one with the same folders; closes the new one if the generation is closed."""
        held = self._held.get(generation)
        if held is None:
            view.close()
            return
        held.view.close()
        held.view = view

    def retire(self, generation: int) -> None:
        """Stop showing a view; it closes when nothing refers to it."""
        self._held[generation].shown = False
        self.release(generation, 0)

    def hold(self, generation: int, times: int = 1) -> None:
        """Add references to folders of a view."""
        self._held[generation].references += times

    def release(self, generation: int, times: int = 1) -> None:
        """Remove references."""
        held = self._held.get(generation)
        if held is None:
            # A wrong count is no reason to end the mount.
            return
        held.references -= times
        if not held.shown and held.references <= 0:
            held.view.close()
            del self._held[generation]

    def close(self) -> None:
        """Close all views."""
        for held in self._held.values():
            held.view.close()
        self._held.clear()
