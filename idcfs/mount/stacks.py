"""SIGUSR1 writes the stacks of threads and tasks, which show where a process hangs; trio.

The stacks of threads go to standard error at once, whatever the process does. Those of tasks go to the log when the
event loop runs next; if they are missing, the event loop hangs.
"""

import collections
import faulthandler
import logging
import signal
import traceback
from collections.abc import Iterator

import trio

log = logging.getLogger(__name__)


async def write_on_signal() -> None:
    """Write the stacks at each SIGUSR1, until cancelled."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        # This handler runs before trio's, which only records that the signal came.
        faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)
        try:
            async for _ in signals:
                log.info("tasks:\n%s", "\n".join(describe_tasks()))
        finally:
            faulthandler.unregister(signal.SIGUSR1)


def describe_tasks() -> Iterator[str]:
    """The tasks of this trio run, each with its stack; tasks of one name with the same stack are written once."""
    stacks: collections.Counter[tuple[str, ...]] = collections.Counter()
    for task in _tasks():
        lines = traceback.StackSummary.extract(task.iter_await_frames()).format()
        stacks[(f"task {task.name}", *lines)] += 1
    for (name, *lines), count in stacks.items():
        yield f"{name} ({count} of them)" if count > 1 else name
        yield "".join(lines).rstrip("\n")


def _tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        yield task
        for nursery in task.child_nurseries:
            waiting += nursery.child_tasks
