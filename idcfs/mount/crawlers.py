"""Crawlers: programs that read every file they find, recognised by name, so that none fetches 100 TB; synchronous.

The FUSE adapter asks when a series is listed, or an instance is looked up or opened, never at a read.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cachetools import TTLCache

NAME_BYTES = 15
"""The kernel keeps so much of a program's name (TASK_COMM_LEN)."""

_CACHE_SECONDS = 5.0
"""How long a thread's name is cached; exec() of another program changes it."""

_CACHED_THREADS = 1024


class Crawlers:
    """Recognises the programs called *names*."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.encode()[:NAME_BYTES]: name for name in names}
        self._threads = TTLCache[int, str | None](_CACHED_THREADS, _CACHE_SECONDS)

    def find(self, thread: int) -> str | None:
        """The name of the crawler that *thread* belongs to, as in *names*; None if it belongs to none.

        The thread is 0 if it is in a PID namespace that this process does not see; then it is not a crawler's.
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
    """The names of a thread and of its process, which may differ."""
    # The thread may have ended, or /proc may hide it.
    with contextlib.suppress(OSError):
        folder = Path("/proc", str(thread))
        yield (folder / "comm").read_bytes().rstrip(b"\n")
        process = re.search(rb"^Tgid:\s*(\d+)$", (folder / "status").read_bytes(), re.MULTILINE)
        if process is not None and int(process[1]) != thread:
            yield Path("/proc", process[1].decode(), "comm").read_bytes().rstrip(b"\n")
