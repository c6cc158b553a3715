"""Whether a cache works: why its calls fail, and whether it answers at all; belongs to the event loop.

A cache that does not answer, because its disk hangs, must not hold up those who read: after `ANSWER_SECONDS` it
counts as stalled, and is asked nothing more until something else has found out that it answers again.
"""

from pathlib import Path

ANSWER_SECONDS = 5.0
"""Seconds in which a disk answers that is only busy; a guess."""


_WRITES = frozenset({"put", "put_many"})


class CacheHealth:
    """The health of the cache in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failures: dict[str, str] = {}
        self.is_stalled = False

    @property
    def failure(self) -> str | None:
        """Why calls fail: reading does so until something was read, writing until something was written."""
        if self.is_stalled:
            return f"{self._folder}: no answer within {ANSWER_SECONDS:g} seconds; its disk may hang"
        return next(iter(self._failures.values()), None)

    def note(self, call: str, failure: str | None) -> None:
        """A call was done, or failed; dropping entries tells nothing, as a full disk lets that happen."""
        if call == "delete":
            return
        kind = "write" if call in _WRITES else "read"
        if failure is None:
            self._failures.pop(kind, None)
        else:
            self._failures[kind] = f"{self._folder}: {failure}"
