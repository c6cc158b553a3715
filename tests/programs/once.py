"""A program of one request, which does what that says."""

import os
import signal
import sys
import time
from typing import NamedTuple

from idcfs.errors import QueryRefused
from idcfs.processes.messages import Done, Message
from idcfs.processes.server import Report, run_once

PROGRAM = "tests.programs.once"


class Task(NamedTuple):
    """What is to be done: see `run`."""

    what: str
    text: str = ""


class Step(NamedTuple):
    """The program goes on; it is the process with this id."""

    process: int


class Result(NamedTuple):
    """The answer."""

    text: str


def run(task: Task, report: Report) -> Message:
    """Report two steps, and do what is to be done."""
    for _ in range(2):
        report(Step(os.getpid()))
    match task.what:
        case "answer":
            return Result(task.text)
        case "answer something else":
            return Done()
        case "refuse":
            raise QueryRefused(task.text)
        case "fail":
            raise ZeroDivisionError(task.text)
        case "end":
            os._exit(int(task.text))
        case "be killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stand still":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "babble":
            os.write(int(sys.argv[1]), b"this is no message\n")
    time.sleep(1000)
    raise AssertionError


if __name__ == "__main__":
    run_once(Task, run)
