"""Programs that read every file they find, told apart by name, so that none of them fetches 100 TB; synchronous.

Asked when a series is listed or an instance looked up or opened, never for a read.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cachetools import TTLCache

NAME_BYTES = 15
"""What the kernel keeps of a program's name (TASK_COMM_LEN)."""

_BELIEVED_SECONDS = 5.0
"""How long a thread keeps its name here: one that starts another program gets that one's."""

_REMEMBERED = 1024


class Crawlers:
    """Knows the programs called *names*."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.encode()[:NAME_BYTES]: name for name in names}
        self._threads = TTLCache[int, str | None](_REMEMBERED, _BELIEVED_SECONDS)

    def find(self, thread: int) -> str | None:
        """The name of the crawler that a thread belongs to, as it was given; None if it is of none.

        Args:
            thread: its number, or 0 if it is of another namespace of processes, which may mean anything.
        """
        if not self._names or not thread:
            return None
        try:
            return self._threads[thread]
        except KeyError:
            found = next((self._names[name] for name in _names(thread) if name in self._names), None)
            self._threads[thread] = found
            return found


def _names(thread: int) -> Iterator[bytes]:
    """The name of a thread, and of its process; a thread may have one of its own."""
    # Gone, or hidden.
    with contextlib.suppress(OSError):
        folder = Path("/proc", str(thread))
        yield (folder / "comm").read_bytes().rstrip(b"\n")
        process = re.search(rb"^Tgid:\s*(\d+)$", (folder / "status").read_bytes(), re.MULTILINE)
        if process is not None and int(process[1]) != thread:
            yield Path("/proc", process[1].decode(), "comm").read_bytes().rstrip(b"\n")
