"""Running `idcfs.catalog.build` as a child process, from trio.

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


async def run_build(specification: dict[str, Any], tell: Callable[[str], None] = lambda step: None) -> None:
    """Build what *specification* asks for (see `idcfs.catalog.build.main`), calling *tell* at each step.

    Waits for the child; cancelling ends it.

    Raises:
        IndexUnusable, CacheUnusable: what the child says.
    """
    # -P keeps modules of the current folder from standing in for those of the installation.
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "idcfs.catalog.build"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
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
                if "step" in message:
                    tell(message["step"])
                else:
                    failure = getattr(errors, message["error"])(message["message"])
        code = await process.wait()
        if failure is not None:
            raise failure
        if code:
            raise errors.IndexUnusable(f"building the catalogue ended with exit code {code}; is memory short?")
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        if process.stdin is not None:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
