"""How many requests may be ahead of readers at a time; pure.

One more with each round trip, and half after a failure, since a mirror that is asked too much refuses some. Requests
that somebody waits for are not counted.
"""

FIRST_REQUESTS = 128
FEWEST_REQUESTS = 4
MOST_REQUESTS = 256
"""Requests ahead: at the start, and the bounds."""


class RequestLimit:
    """Counts the requests ahead."""

    def __init__(self) -> None:
        self.under_way = 0
        self._most = float(FIRST_REQUESTS)
        self._begun = 0
        self._begun_at_cut = 0

    @property
    def has_room(self) -> bool:
        """Whether another request may begin."""
        return self.under_way < self._most

    def begin(self) -> int:
        """A request begins; returns its number."""
        self.under_way += 1
        self._begun += 1
        return self._begun

    def end(self, number: int, is_answered: bool) -> None:
        """A request has ended; *is_answered* unless it has failed."""
        self.under_way -= 1
        if is_answered:
            # So many ends make one round trip.
            self._most = min(MOST_REQUESTS, self._most + 1 / self._most)
        elif number > self._begun_at_cut:
            # Those under way were made before the failure was known.
            self._begun_at_cut = self._begun
            self._most = max(FEWEST_REQUESTS, self._most / 2)
