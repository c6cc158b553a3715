"""The child's side of `idcfs.processes.child`: takes one specification, tells what happens, ends with the parent.

The specification is one line of JSON on standard input; messages are JSON lines on standard output, the last one
of a failure being ``{"error": class of idcfs.errors, "message": text}``. The end of standard input means that the
parent is gone, and ends this process.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from idcfs.errors import IdcfsError

Tell = Callable[[dict[str, Any]], None]
"""Takes a message for the parent."""


def serve(run: Callable[[dict[str, Any], Tell], None]) -> None:
    """Run a specification from standard input and end this process."""
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = attempt(run, json.loads(line))
    sys.stdout.flush()
    # A normal exit would wait for the thread that reads standard input.
    os._exit(code)


def attempt(run: Callable[[dict[str, Any], Tell], None], specification: dict[str, Any]) -> int:
    """Run a specification; the exit code is 0, or 1 after an error message."""
    try:
        run(specification, tell)
    except IdcfsError as error:
        _tell_error(type(error).__name__, str(error))
    else:
        return 0
    return 1


def tell(message: dict[str, Any]) -> None:
    """Send a message to the parent."""
    print(json.dumps(message), flush=True)


def _tell_error(kind: str, message: str) -> None:
    tell({"error": kind, "message": message})


def _end_with_parent() -> None:
    # Not sys.stdin: a thread inside its buffer would keep the interpreter from ending.
    while os.read(0, 1024):
        pass
    os._exit(1)
