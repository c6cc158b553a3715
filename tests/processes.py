"""The processes that a process has started, as /proc tells them."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def children_of(parent: int, program: str = "") -> list[int]:
    """The ids of the processes that *parent* has started and that run, with *program* in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            is_one = int(fields[1]) == parent and fields[0] != "Z"
            if is_one and program.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def is_running(process: int) -> bool:
    """Whether a process is there and not just waiting to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def stopped(process: int) -> Iterator[None]:
    """Have a process stand still."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
