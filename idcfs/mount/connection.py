"""The kernel's side of a mount: how many reads it lets wait, and how it is told to abort; synchronous."""

import logging
from pathlib import Path

from idcfs.mount import mountpoint as mountpoints

log = logging.getLogger(__name__)

MAX_BACKGROUND = 1024
"""Reads that the kernel lets wait: so many that wait for a mirror block those of cached files; its own are 12."""

SHORT_TIMEOUT = 10.0
"""Seconds that a read may take where the kernel's limit stays; a guess: that of 12 which wait, others wait for as long,
and that a second connection can still answer when the first one has stalled."""


class Connection:
    """The FUSE connection of the mount on *mountpoint*, made before the mount is.

    Args:
        timeout: seconds that a read may take where many may wait.
    """

    def __init__(self, mountpoint: Path, timeout: float) -> None:
        self._mountpoint = mountpoint
        self._timeout = timeout
        self._failure: str | None = None
        self._folder: Path | None = None

    def establish(self) -> None:
        """The mount is there: let more requests wait; where this user may not say so, have them wait for less long."""
        self._folder = mountpoints.daemon_limits(self._mountpoint)
        if self._folder is None:
            return
        limit = self._folder / "max_background"
        try:
            limit.write_text(str(MAX_BACKGROUND))
            (self._folder / "congestion_threshold").write_text(str(MAX_BACKGROUND * 3 // 4))
        except OSError as error:
            self._timeout = min(self._timeout, SHORT_TIMEOUT)
            self._failure = (
                f"the kernel lets few reads wait, so none does for more than {self._timeout:g} seconds: "
                f"{limit}: {error.strerror}"
            )
            log.info("%s", self._failure)

    def abort_file(self) -> Path | None:
        """The file in which the kernel takes the order to abort the connection; None before the mount is there."""
        return None if self._folder is None else self._folder / "abort"

    def read_timeout(self) -> float:
        """The seconds that a read may take, whatever it waits for."""
        return self._timeout

    def limits_failure(self) -> str | None:
        """Why the kernel lets few reads wait, and for how long they do; None if many may wait."""
        return self._failure
