"""`Lease`; belongs to the event loop, and loads nothing of it."""

from collections.abc import Callable
from typing import Any, Self


class Lease:
    """The right to use a region of an arena. Whoever holds it calls `release` once; the last release frees the region.

    `start` is the region's place in the arena, in bytes; `view` are its bytes, which must not be used after the
    release. Taking a lease is the first hold. `with lease:` releases one hold at its end.
    """

    __slots__ = ("_free", "_holders", "start", "view")

    def __init__(self, start: int, view: memoryview, free: Callable[[], None]) -> None:
        self.start = start
        self.view = view
        self._free = free
        self._holders = 1

    def __len__(self) -> int:
        return len(self.view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()

    def hold(self) -> Self:
        """Hold the lease once more."""
        assert self._holders, "a lease that was let go of cannot be held again"
        self._holders += 1
        return self

    def release(self) -> None:
        """Give one hold back."""
        assert self._holders, "a lease is released once for each hold"
        self._holders -= 1
        if not self._holders:
            self._free()

    def part(self, start: int, stop: int) -> "Lease":
        """A lease of the bytes *start* to *stop* of this one, whose region is not free before both are released."""
        self.hold()
        return Lease(self.start + start, self.view[start:stop], self.release)
