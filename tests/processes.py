"""Processes as /proc describes them, waiting for what becomes of them, and programs that are started by hand."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from idcfs.processes.messages import Message, encode

PATIENCE = 120
"""Seconds after which what a test waits for is taken never to come, on a machine that is busy with much else."""


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
    """Whether a process is there and not just waiting to be reaped; a killed one is until its last thread has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z" or int(fields[17]) > 1


def is_reaped(process: int) -> bool:
    """Whether nothing is left of a process."""
    return not Path(f"/proc/{process}").exists()


@contextlib.contextmanager
def stopped(process: int) -> Iterator[None]:
    """Have a process stand still."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def until(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for what calls nobody."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.01)


def until_at_rest(*processes: int) -> None:
    """Wait until no thread of some processes runs, or has run since the look before: nobody does anything for anybody.

    Of a thread's number, all threads of its process are meant.
    """
    last: list[tuple[str, ...]] = []

    def are_at_rest() -> bool:
        nonlocal last
        before, last = last, [_activity(task) for process in processes for task in _tasks(process)]
        return last == before and not any(state in "RD" for state, *_ in last)

    until(are_at_rest)


def _tasks(process: int) -> list[Path]:
    own = threading.get_native_id()
    try:
        return [task for task in sorted(Path(f"/proc/{process}/task").iterdir()) if task.name != str(own)]
    except FileNotFoundError:
        # The process has ended since it was found.
        return []


def _activity(task: Path) -> tuple[str, ...]:
    """A thread's state, and how often it has gone to sleep and been sent to sleep."""
    try:
        lines = (task / "status").read_text().splitlines()
    except OSError:
        return ("gone",)
    fields = dict(line.split(":", 1) for line in lines)
    return fields["State"].split()[0], fields["voluntary_ctxt_switches"], fields["nonvoluntary_ctxt_switches"]


async def until_true(true: Callable[[], object]) -> None:
    """As `until`, while trio's other tasks go on."""
    with trio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110  # what is waited for calls nobody
            await trio.sleep(0.005)


@contextlib.contextmanager
def started(module: str, *requests: Message) -> "Iterator[tuple[subprocess.Popen[bytes], socket.socket]]":
    """A child that runs *module*, and the socket to it; *requests*, numbered from 0, are sent at once."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-P", "-m", module, str(theirs.fileno())]
            child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        with child:
            try:
                ours.sendall(b"".join(encode(number, request) for number, request in enumerate(requests)))
                yield child, ours
            finally:
                child.kill()
