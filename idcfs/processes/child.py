"""Running a program of `idcfs.catalog` as a child process, from trio.

The child is started by exec, never forked: a forked child would hold the FUSE device open. It ends with the
caller's scope, and when the daemon dies.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import trio

from idcfs import errors


async def run_child(
    module: str, specification: dict[str, Any], hear: Callable[[dict[str, Any]], None] = lambda message: None
) -> None:
    """Run *module* on *specification* (see `idcfs.processes.program`), calling *hear* with each message.

    Waits for the child; cancelling ends it.

    Raises:
        IdcfsError: what the child says, or that it ended without a word.
    """
    # -P keeps modules of the current folder from standing in for those of the installation.
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(json.dumps(specification).encode() + b"\n")
        failure = None
        received = bytearray()
        async for chunk in process.stdout:
            received += chunk
            *lines, rest = received.split(b"\n")
            received = bytearray(rest)
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    failure = getattr(errors, message["error"])(message["message"])
                else:
                    hear(message)
        code = await process.wait()
        if failure is not None:
            raise failure
        if code:
            raise errors.ChildEnded(f"{module} ended with exit code {code}; is memory short?")
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        if process.stdin is not None:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
