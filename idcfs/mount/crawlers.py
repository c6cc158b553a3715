"""Crawlers: programs that read every file they find, recognised by name, so that none fetches 100 TB; synchronous.

The FUSE adapter asks when a series is listed, or an instance is looked up or opened, never at a read.
"""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

NAME_BYTES = 15
"""The kernel keeps so much of a program's name (TASK_COMM_LEN)."""

_CACHE_SECONDS = 5.0
"""How long a thread's name is cached; exec() of another program changes it."""

_CACHED_THREADS = 1024


class _Cached(NamedTuple):
    until: float
    crawler: str | None


class Crawlers:
    """Recognises the programs called *names*."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.encode()[:NAME_BYTES]: name for name in names}
        self._threads: dict[int, _Cached] = {}

    def find(self, thread: int) -> str | None:
        """The name of the crawler that *thread* belongs to, as in *names*; None if it belongs to none.

        The thread is 0 if it is in a PID namespace that this process does not see; then it is not a crawler's.
        """
        if not self._names or not thread:
            return None
        now = time.monotonic()
        cached = self._threads.get(thread)
        if cached is None or now > cached.until:
            if len(self._threads) >= _CACHED_THREADS:
                self._threads.clear()
            found = next((self._names[name] for name in _names(thread) if name in self._names), None)
            cached = self._threads[thread] = _Cached(now + _CACHE_SECONDS, found)
        return cached.crawler


def _names(thread: int) -> Iterator[bytes]:
    """The names of a thread and of its process, which may differ."""
    # The thread may have ended, or /proc may hide it.
    with contextlib.suppress(OSError):
        folder = Path("/proc", str(thread))
        yield (folder / "comm").read_bytes().rstrip(b"\n")
        process = re.search(rb"^Tgid:\s*(\d+)$", (folder / "status").read_bytes(), re.MULTILINE)
        if process is not None and int(process[1]) != thread:
            yield Path("/proc", process[1].decode(), "comm").read_bytes().rstrip(b"\n")
