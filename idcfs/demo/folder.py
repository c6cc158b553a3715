"""The folder of a demo's mount, which goes with it; synchronous."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "idcfs-demo-"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the length of the context; those whose processes were killed before their end are removed, too."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            _remove_if_left(path)
    # Another process that ends at the same time may help to remove it.
    with contextlib.ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        lock = _open(folder.name)
        stack.callback(os.close, lock)
        stack.enter_context(folder)
        # Where folders cannot be locked, none is taken for one that was left.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder.name)


def _remove_if_left(path: Path) -> None:
    lock = _open(path)
    try:
        # Whoever has just made a folder locks it before anything is in it.
        if os.fstat(lock).st_uid == os.geteuid() and os.listdir(lock):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    finally:
        os.close(lock)


def _open(path: Path | str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
