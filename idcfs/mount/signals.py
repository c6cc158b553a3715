"""`SignalHandler`: unmounts at SIGTERM, SIGINT and SIGHUP; trio, one thread.

Programs with open files get `GRACE_SECONDS` to close them. Then, or at a second signal, the mount ends and they get
ENOTCONN. A signal before the mount answers cancels the start.
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
"""Long enough for a copy to finish its present file; systemd and a shutdown wait longer."""

_RETRY_SECONDS = 0.25


class SignalHandler:
    """Ends the mount on *path*. The code that starts and serves the mount runs in the scope `starting`."""

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
        """The context in which the mount exists; *terminate* ends it at once."""
        self._device = mountpoints.device(self._path)
        self._terminate = terminate
        try:
            yield
        finally:
            # A signal from now on changes nothing: the mount is being closed already.
            self._terminate = None

    def ready(self) -> None:
        """Note that the mount answers."""
        self._is_ready = True

    def check(self) -> None:
        """Raise if a signal cancelled the start.

        Raises:
            KeyboardInterrupt: because of SIGINT.
            MountFailed: because of another signal.
        """
        if self._interrupted_by == signal.SIGINT:
            raise KeyboardInterrupt
        if self._interrupted_by is not None:
            name = signal.Signals(self._interrupted_by).name
            raise MountFailed(f"{self._path}: {name} came before the mount answered")

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle signals until cancelled; has started once the handlers are installed."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    self._handle(number, nursery)

    def _handle(self, number: int, nursery: trio.Nursery) -> None:
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
                await trio.sleep(_RETRY_SECONDS)
        if mountpoints.device(self._path) == self._device:
            log.warning("%s is in use; it is unmounted nevertheless", self._path)
        self._end()

    def _end(self) -> None:
        if self._terminate is not None:
            self._terminate()
