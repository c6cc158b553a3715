"""A program that answers many requests, each in its own way."""

import os
import threading
import time
from typing import NamedTuple

from idcfs.errors import NotFound, Unreachable
from idcfs.processes.messages import Cancel, Done, Failed
from idcfs.processes.server import Connection, shared_arena

PROGRAM = "tests.programs.many"


class Options(NamedTuple):
    """What every answer begins with."""

    greeting: str


class Say(NamedTuple):
    """Answer with `text`, after so many steps."""

    text: str
    steps: int = 0


class Fail(NamedTuple):
    """Answer that `text` was not found."""

    text: str


class Wait(NamedTuple):
    """Report a step, and answer when the request is given up."""


class Ignore(NamedTuple):
    """Report a step, and never answer."""


class End(NamedTuple):
    """End the process, with an exit code."""

    code: int


class Babble(NamedTuple):
    """Send what is no message, and go on."""


class Fill(NamedTuple):
    """Fill a region of the arena with `text`, which is ASCII."""

    at: int
    text: str


class Write(NamedTuple):
    """Write to an inherited descriptor."""

    descriptor: int
    text: str


class Said(NamedTuple):
    """What was to be said, and the id of the process."""

    text: str
    process: int


class Step(NamedTuple):
    """A request goes on, in a process with this id."""

    process: int


REQUESTS = [Options, Say, Fail, Wait, Ignore, End, Babble, Fill, Write]
ANSWERS = [Said, Step]


def main() -> None:
    """Answer until the other side is gone."""
    connection = Connection.of_this_process(REQUESTS)
    _, options = connection.first(Options)
    waiting: set[int] = set()
    while (envelopes := connection.receive()) is not None:
        for number, _, request in envelopes:
            match request:
                case Say(text, steps):
                    for _ in range(steps):
                        connection.answer(number, Step(os.getpid()), is_last=False)
                    connection.answer(number, Said(f"{options.greeting} {text}", os.getpid()))
                case Fail(text):
                    connection.answer(number, Failed.of(NotFound(text)))
                case Wait():
                    waiting.add(number)
                    connection.answer(number, Step(os.getpid()), is_last=False)
                case Ignore():
                    connection.answer(number, Step(os.getpid()), is_last=False)
                case Cancel() if number in waiting:
                    connection.answer(number, Failed.of(Unreachable("given up")))
                case End(code):
                    os._exit(code)
                case Babble():
                    os.write(connection.fileno(), b"this is no message\n")
                    threading.Thread(target=time.sleep, args=(1000,)).start()
                case Fill(at, text):
                    shared_arena()[at : at + len(text)] = text.encode()
                    connection.answer(number, Done())
                case Write(descriptor, text):
                    os.write(descriptor, text.encode())
                    connection.answer(number, Done())


if __name__ == "__main__":
    main()
