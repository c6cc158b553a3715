"""A process that puts bytes into the kernel's page cache of a mount, before anybody reads them.

    python -m idcfs.pages.server OPTIONS

OPTIONS is JSON: `device` (a descriptor of the mount's /dev/fuse), `abort` (one of the file in which the kernel takes
the order to abort the connection), and the descriptors of a socket and of an arena (see `Arena`). Requests and
answers are lines of JSON on the socket. A request has an `id` and `inode`, `offset`, `at` and `length`: bytes of that
file from `offset` on, in the arena. The answer says in `stored` whether the kernel took them.

The kernel lets the writer wait while a reader waits for the same page; so this process answers no reads, and nothing
that answers reads waits for it. It holds the mount's device: when the file system is gone it aborts the connection at
once, because a read that is never answered would otherwise keep both in the kernel for ever.
"""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import queue
import signal
import socket
import struct
import sys
import threading
from typing import Any

NICENESS = 5

_HEADER = struct.Struct("<IiQQQII")
_NOTIFY_STORE = 4
"""FUSE_NOTIFY_STORE of the kernel's fuse.h; the structures are fuse_out_header and fuse_notify_store_out."""

_SET_SIGNAL_AT_PARENTS_END = 1
"""PR_SET_PDEATHSIG of prctl(2)."""

_GONE = frozenset({errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED})


def store(device: int, inode: int, offset: int, data: memoryview) -> bool:
    """Put bytes of a file into its pages; whether the kernel knows the file, and took them.

    Raises:
        OSError: the mount is gone.
    """
    header = _HEADER.pack(_HEADER.size + len(data), _NOTIFY_STORE, 0, inode, offset, len(data), 0)
    try:
        os.writev(device, [header, data])
    except OSError as error:
        if error.errno in _GONE:
            raise
        return False
    return True


def _store_all(
    device: int, arena: memoryview, connection: socket.socket, requests: "queue.SimpleQueue[dict[str, Any]]"
) -> None:
    while True:
        request = requests.get()
        data = arena[request["at"] : request["at"] + request["length"]]
        try:
            stored = store(device, request["inode"], request["offset"], data)
            connection.sendall(json.dumps({"id": request["id"], "stored": stored}).encode() + b"\n")
        except OSError:
            return


def main() -> None:
    """Run as a process."""
    # Whoever reads what is here already goes before what is ahead.
    os.nice(NICENESS)
    # If it is stopped when the file system ends, it must go on and let go of the device.
    ctypes.CDLL(None).prctl(_SET_SIGNAL_AT_PARENTS_END, signal.SIGCONT)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.argv[1])
    connection = socket.socket(fileno=options["socket"])
    arena = memoryview(mmap.mmap(options["arena"], options["arena_size"]))
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    work = (options["device"], arena, connection, requests)
    threading.Thread(target=_store_all, args=work, daemon=True).start()
    with contextlib.suppress(OSError), connection.makefile("rb") as lines:
        for line in lines:
            request = json.loads(line)
            if "inode" in request:
                requests.put(request)
    with contextlib.suppress(OSError):
        os.write(options["abort"], b"1")
    os._exit(0)


if __name__ == "__main__":
    main()
