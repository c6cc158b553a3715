"""The temporary folder of a demo's mount; synchronous."""

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
    """Yield a folder that is removed at the end; also removes the folders of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            _remove_if_left(path)
    # Another process may remove the folder at the same time.
    with contextlib.ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        lock = _open(folder.name)
        stack.callback(os.close, lock)
        stack.enter_context(folder)
        # Where folders cannot be locked, the folders of killed processes stay.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder.name)


def _remove_if_left(path: Path) -> None:
    lock = _open(path)
    try:
        # An empty folder was just made: it is locked before a file is in it.
        if os.fstat(lock).st_uid == os.geteuid() and os.listdir(lock):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    finally:
        os.close(lock)


def _open(path: Path | str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
