"""Views that come and go, as those of cohorts do; belongs to the event loop.

Each has a generation of its own, used once in the life of a mount: the kernel moves a folder that turns up under a
second name, so what replaces a view must have other inode numbers. A view that is shown no more stays open as long
as the kernel, or an open folder, refers to one of its folders.
"""

from idcfs.catalog.view import View
from idcfs.errors import NoSpace
from idcfs.inode import MAX_GENERATION

FIRST_GENERATION = 1 << 16
"""Lower ones belong to the views that an index always has."""


class _Held:
    def __init__(self, view: View) -> None:
        self.view = view
        self.references = 0
        self.shown = True


class TemporaryViews:
    """The views, by generation."""

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
            raise NoSpace("this mount has shown as many cohorts as it can; mount again")
        generation = self._next
        self._next += 1
        self._held[generation] = _Held(view)
        return generation

    def get(self, generation: int) -> View | None:
        """The view of a generation, if it is open."""
        held = self._held.get(generation)
        return None if held is None else held.view

    def replace(self, generation: int, view: View) -> None:
        """Put a view with the same folders in the place of one that is damaged, if that is still open."""
        held = self._held.get(generation)
        if held is None:
            view.close()
            return
        held.view.close()
        held.view = view

    def retire(self, generation: int) -> None:
        """Show a view no more; it closes when nothing refers to it."""
        self._held[generation].shown = False
        self.release(generation, 0)

    def hold(self, generation: int, times: int = 1) -> None:
        """Count references to folders of a view."""
        self._held[generation].references += times

    def release(self, generation: int, times: int = 1) -> None:
        """Give references back."""
        held = self._held.get(generation)
        if held is None:
            # Nothing to close, and a count that went wrong is not worth the mount.
            return
        held.references -= times
        if not held.shown and held.references <= 0:
            held.view.close()
            del self._held[generation]

    def close(self) -> None:
        """Close all files."""
        for held in self._held.values():
            held.view.close()
        self._held.clear()
