"""A process that puts bytes into the kernel's page cache of a mount, before anybody reads them; two threads.

It answers the messages of `idcfs.pages.messages`, and no reads: those would wait with it (see `idcfs.pages`). It holds
the mount's device: when the file system is gone it aborts the connection at once, because a read that is never
answered would otherwise keep both in the kernel for ever.
"""

import contextlib
import ctypes
import errno
import os
import queue
import signal
import struct
import threading

from idcfs.pages.messages import Device, Store, Stored
from idcfs.processes.server import Connection, shared_arena

NICENESS = 5

_HEADER = struct.Struct("<IiQQQII")
_NOTIFY_STORE = 4
"""FUSE_NOTIFY_STORE of the kernel's fuse.h; the structures are fuse_out_header and fuse_notify_store_out."""

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent ends."""

_GONE = frozenset({errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED})


def _store_all(
    device: int, arena: memoryview, connection: Connection, requests: "queue.SimpleQueue[tuple[int, Store]]"
) -> None:
    """Do what is requested, until the mount is gone."""
    while True:
        number, (inode, offset, at, length) = requests.get()
        header = _HEADER.pack(_HEADER.size + length, _NOTIFY_STORE, 0, inode, offset, length, 0)
        try:
            os.writev(device, [header, arena[at : at + length]])
            is_taken = True
        except OSError as error:
            if error.errno in _GONE:
                return
            # The kernel does not know the file.
            is_taken = False
        connection.answer(number, Stored(is_taken))


def main() -> None:
    """Run as a process."""
    # What readers wait for goes before what is ahead of them.
    os.nice(NICENESS)
    # If it is stopped when the file system ends, it must go on and close the device.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection.of_this_process([Device, Store])
    _, options = connection.first(Device)
    requests: queue.SimpleQueue[tuple[int, Store]] = queue.SimpleQueue()
    work = (options.device, shared_arena(), connection, requests)
    threading.Thread(target=_store_all, args=work, daemon=True).start()
    while (envelopes := connection.receive()) is not None:
        for envelope in envelopes:
            if isinstance(envelope.message, Store):
                requests.put((envelope.number, envelope.message))
    with contextlib.suppress(OSError):
        os.write(options.abort, b"1")
    os._exit(0)


if __name__ == "__main__":
    main()
