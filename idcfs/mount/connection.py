"""The kernel's side of a mount: how many reads it lets wait, and how it aborts; synchronous."""

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

    Attributes:
        read_timeout: seconds that a read may take, whatever it waits for: *timeout*, where many may wait.
        limits_failure: why the kernel lets few reads wait, and for how long they do; None if many may wait.
        abort_file: the file to write to for the kernel to abort the connection; None before the mount is there.
    """

    def __init__(self, mountpoint: Path, timeout: float) -> None:
        self._mountpoint = mountpoint
        self.read_timeout = timeout
        self.limits_failure: str | None = None
        self.abort_file: Path | None = None

    def establish(self) -> None:
        """Let more requests wait in the mount that is there now; where this user may not, reads get less time."""
        folder = mountpoints.daemon_limits(self._mountpoint)
        if folder is None:
            return
        self.abort_file = folder / "abort"
        limit = folder / "max_background"
        try:
            limit.write_text(str(MAX_BACKGROUND))
            (folder / "congestion_threshold").write_text(str(MAX_BACKGROUND * 3 // 4))
        except OSError as error:
            self.read_timeout = min(self.read_timeout, SHORT_TIMEOUT)
            self.limits_failure = (
                f"the kernel lets few reads wait, so none does for more than {self.read_timeout:g} seconds: "
                f"{limit}: {error.strerror}"
            )
            log.info("%s", self.limits_failure)
