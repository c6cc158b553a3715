"""How a mount ends when a signal says so; trio, one thread.

SIGTERM, SIGINT and SIGHUP unmount. Who has files open gets `GRACE_SECONDS` to close them; then, or at a second
signal, the mount goes anyway, and they get ENOTCONN. Before the mount answers, a signal gives up the start.
"""

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from idcfs.errors import MountFailed
from idcfs.mount import mountpoint as mountpoints

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""What is being copied may end with its file; systemd and a shutdown wait longer than that."""

_TRY_EVERY = 0.25


class Ending:
    """The end of the mount on *path*; what starts it runs in the scope `starting`."""

    def __init__(self, path: Path) -> None:
        self.starting = trio.CancelScope()
        self._path = path
        self._device: str | None = None
        self._terminate: Callable[[], None] | None = None
        self._is_ready = False
        self._is_unmounting = False
        self._interrupted_by: int | None = None

    @contextlib.contextmanager
    def mounted(self, terminate: Callable[[], None]) -> Iterator[None]:
        """Say that the mount is there, and that *terminate* ends it at once."""
        self._device = mountpoints.device(self._path)
        self._terminate = terminate
        try:
            yield
        finally:
            # What comes now comes when everything is being closed already.
            self._terminate = None

    def ready(self) -> None:
        """Say that the mount answers."""
        self._is_ready = True

    def check(self) -> None:
        """Say so if the start was given up.

        Raises:
            KeyboardInterrupt: because of SIGINT.
            MountFailed: because of another signal.
        """
        if self._interrupted_by == signal.SIGINT:
            raise KeyboardInterrupt
        if self._interrupted_by is not None:
            name = signal.Signals(self._interrupted_by).name
            raise MountFailed(f"{self._path}: {name} came before the mount answered")

    async def obey(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take signals until cancelled; has started when none can end the process any more."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    self._take(number, nursery)

    def _take(self, number: int, nursery: trio.Nursery) -> None:
        if not self._is_ready:
            self._interrupted_by = number
            if self._terminate is None:
                self.starting.cancel()
            else:
                self._terminate()
        elif self._is_unmounting:
            self._end()
        else:
            self._is_unmounting = True
            nursery.start_soon(self._unmount)

    async def _unmount(self) -> None:
        with trio.move_on_after(GRACE_SECONDS):
            while mountpoints.device(self._path) == self._device:
                try:
                    await trio.to_thread.run_sync(mountpoints.unmount, self._path, abandon_on_cancel=True)
                    return
                except MountFailed as error:
                    log.debug("%s", error)
                await trio.sleep(_TRY_EVERY)
        if mountpoints.device(self._path) == self._device:
            log.warning("%s is in use; it is unmounted all the same", self._path)
        self._end()

    def _end(self) -> None:
        if self._terminate is not None:
            self._terminate()
