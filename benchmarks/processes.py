"""Processes: finds children, measures memory, ends processes, and runs a function in a new process."""

import contextlib
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

END_TIMEOUT = 10.0
"""Seconds that a process has to end before it is killed."""

P = ParamSpec("P")
T = TypeVar("T")


def in_child(function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """Call *function* in a new process, which then ends with all that it loaded; return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **keywords).result()


def descendants(process: int) -> list[int]:
    """The children of a process, their children, and so on."""
    parents: dict[int, int] = {}
    for number in _processes():
        with contextlib.suppress(OSError):
            parents[number] = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return found[1:]


def mentioning(text: str) -> list[int]:
    """The processes whose command line contains *text*."""
    return [process for process in _processes() if text in command_line(process)]


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def proportional_memory(processes: Iterable[int]) -> float:
    """The PSS of some processes in megabytes: memory that they share with others counts in proportion."""
    return sum(_kilobytes(process, "smaps_rollup", "Pss") for process in processes) * 1024 / 1e6


def peak_memory(process: int) -> float:
    """The peak RSS of a process so far in megabytes (VmHWM); 0 if it is gone."""
    try:
        return _kilobytes(process, "status", "VmHWM") * 1024 / 1e6
    except OSError:
        return 0


def command_line(process: int) -> str:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _kilobytes(process: int, file: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{process}/{file}").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def terminate(process: int) -> None:
    """Send SIGTERM to a process, and kill it if it does not end in time."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    end(process)


def end(process: int) -> None:
    """Wait for a process to end, and kill it if it does not end in time."""
    deadline = time.monotonic() + END_TIMEOUT
    while _runs(process):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            return
        time.sleep(0.01)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
