"""The order in which a reader of the tree comes to series; belongs to the event loop.

A series can be in many views, and a file's inode number does not say through which it was found. So the view in
which the series was last looked at counts.
"""

from collections import OrderedDict

from idcfs.catalog.catalogue import Catalogue

_REMEMBERED = 4096
"""Series whose place is known; the least recently met are forgotten first. A guess: more than readers are at."""


class SeriesOrder:
    """Where series were met last."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._places: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def met(self, series: int, generation: int, group: int) -> None:
        """A series was looked at in a view."""
        self._places[series] = generation, group
        self._places.move_to_end(series)
        if len(self._places) > _REMEMBERED:
            self._places.popitem(last=False)

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
