"""The kernel's page cache of a mount, filled ahead of readers (FUSE_NOTIFY_STORE).

A reader who finds a file's bytes there asks for nothing. Measured: of the time that a reader takes for a file of 526
kB, two thirds are the kernel's requests for its bytes. Two things have to be right with it. What is read from there is
not seen here, so whoever fills leaves a page out now and then (`idcfs.reading.filled`). And the kernel makes whoever
stores a page wait while a reader waits for the same page, so a process of its own stores, and nothing that answers
reads waits for it.

    client    `PageCache`, in the event loop
    server    the process that stores

Stands before `reading` in the list of rooms, because what is fetched ahead is handed on to it. Imports the foundations
and `processes`.
"""
