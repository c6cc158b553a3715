"""Child processes, the memory they share, and the messages they exchange.

Heavy and hostile input (HTTP, checksums, SQLite, SQL) is worked on in processes of their own, so that the event loop
is free to answer the kernel: Python's lock would let only one thread of this process run. Every child is started by
exec (a forked one would hold /dev/fuse open), is asked over a socket, and ends when that socket does.

    event loop (trio)                              child process (any loop)
    Pool ── Child ══════ messages, a socket ══════ Connection ── a server's handlers
              │                                        │
            Lease ────── arena, shared memory ──────── memoryview

    messages    what goes over the socket: typed records, and errors; pure
    lease       the right to use a region of shared memory; event loop
    arena       shared memory, given out in leases; event loop
    child       one process, and the requests that it has not answered; event loop
    pool        processes that do the same, replaced when they end; event loop
    server      the child's end of the socket; threads or asyncio

May be imported by every room below; imports only the foundations. A `Pool` owns its processes, an `Arena` its memory,
and both live as long as the mount.
"""
