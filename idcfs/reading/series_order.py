"""The order in which a reader of the tree comes to series; belongs to the event loop.

A series can be in many views, and a file's inode number does not say through which it was found. So the view in
which the series was last looked at counts.
"""

from cachetools import LRUCache

from idcfs.catalog.catalogue import Catalogue

_REMEMBERED = 4096
"""Series whose place is known; the least recently met are forgotten first. A guess: more than readers are at."""

FIRST_LISTED_AHEAD = 1
LISTED_AHEAD = 8
"""Series listed ahead of a program that opens the folder of one, and of a program that goes from one to the next."""


class SeriesOrder:
    """Where series were met last."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._places = LRUCache[int, tuple[int, int]](_REMEMBERED)
        self._entered: int | None = None

    def met(self, series: int, generation: int, group: int) -> None:
        """Note that a series was looked at in a view."""
        self._places[series] = generation, group

    def entered(self, series: int, generation: int, group: int) -> list[int]:
        """Note that the folder of a series is opened in a view; returns the series to list ahead."""
        self.met(series, generation, group)
        goes_on = self._entered is not None and self.following(self._entered) == series
        self._entered = series
        ahead: list[int] = []
        after = self.following(series)
        while after is not None and len(ahead) < (LISTED_AHEAD if goes_on else FIRST_LISTED_AHEAD):
            ahead.append(after)
            after = self.following(after)
        return ahead

    def following(self, series: int) -> int | None:
        """The series that stands after one that was met; None if nothing is known."""
        place = self._places.get(series)
        view = None if place is None else self._catalogue.view(place[0])
        if place is None or view is None or place[1] + 1 >= view.groups(view.depth):
            return None
        found = view.series_row(place[1] + 1)
        if found not in self._places:
            self.met(found, place[0], place[1] + 1)
        return found
