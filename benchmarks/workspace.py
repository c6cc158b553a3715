"""The workspace of a run: a temporary folder with a built catalogue, and mounts that always end with it."""

import contextlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes

IDCFS = Path(sys.executable).with_name("idcfs")

TOUCHED_BYTES = 2 << 30
"""Memory that is touched before something is timed: more than it needs with the kernel's inodes and pages."""

NOWHERE = "http://127.0.0.1:1"
"""A mirror that does not exist, for benchmarks that only use folders above the series."""

SETTLE_SECONDS = 1.0

COMMAND_TIMEOUT = 300.0
"""Seconds after which a command counts as hung; a tenfold index is built in about one minute."""

LOG_TAIL = 4000
"""Characters of a daemon's log that are added to an error."""


@dataclass(frozen=True)
class Mounted:
    """A mount: its path, the seconds that ``idcfs mount`` and a first ``ls`` took, and the daemon's process."""

    path: Path
    seconds: float
    process: int

    def memory(self) -> float:
        """The PSS of the daemon and its children in megabytes."""
        return processes.proportional_memory([self.process, *processes.descendants(self.process)])

    def settle(self) -> None:
        """Wait until the workers run, which start when the mount answers; users do not read so soon."""
        time.sleep(SETTLE_SECONDS)

    def status(self) -> dict[str, Any]:
        """The content of the mount's status.json."""
        return read_status(self.path)


class Workspace:
    """A temporary folder; `workspace` makes one.

    Args:
        folder: an empty folder on a disk; in memory, the benchmark of cached bytes would be meaningless.
        most_runs: the limit of runs of each measurement, for trials.
    """

    def __init__(self, folder: Path, most_runs: int | None = None) -> None:
        self.folder = folder
        self._most_runs = most_runs
        self._catalogue = folder / "catalogue"
        self._caches = 0
        # Without the user's configuration, and without a proxy for the loopback network.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("IDCFS_", "AWS_"))}
        self.environment = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
        for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
            self.environment[f"XDG_{kind}_HOME"] = str(folder / kind.lower())

    def runs(self, wanted: int) -> int:
        """The number of times to measure something: *wanted*, or fewer in a trial."""
        return min(wanted, self._most_runs or wanted)

    def empty_cache(self) -> Path:
        """Make a new, empty cache folder."""
        self._caches += 1
        cache = self.folder / f"cache-{self._caches}"
        cache.mkdir()
        return cache

    def cache(self) -> Path:
        """Make a new cache folder with only the catalogue, which is built the first time and then shared."""
        if not self._catalogue.exists():
            self._catalogue.mkdir()
            with self.mounted(self.cache(), NOWHERE):
                pass
        cache = self.empty_cache()
        (cache / "catalogue").symlink_to(self._catalogue)
        return cache

    @contextlib.contextmanager
    def mounted(self, cache: Path, mirror: str, *flags: str) -> Iterator[Mounted]:
        """Mount with ``idcfs mount``, list the root once, and unmount at the end.

        Args:
            cache: the cache folder.
            mirror: the mirror's URL.
            flags: more flags of ``idcfs mount``.
        """
        path = self.folder / "mnt"
        command: list[str | Path] = [IDCFS, "mount", "--cache-dir", cache, "--mirror", mirror, *flags, path]
        process = 0
        try:
            start = time.perf_counter()
            self.run(*command)
            self.run("ls", path)
            seconds = time.perf_counter() - start
            process = int(read_status(path)["pid"])
            yield Mounted(path, seconds, process)
        except Exception as error:
            # The logs are removed with the workspace.
            for log in self.folder.glob("state/**/*.log"):
                error.add_note(f"{log.name}:\n{log.read_text()[-LOG_TAIL:]}")
            raise
        finally:
            if not process:
                # The start was interrupted; the daemon is in another session and does not end by itself.
                for starting in processes.mentioning(str(path)):
                    processes.terminate(starting)
            unmount(path)
            if process:
                processes.end(process)

    def run(self, *command: str | Path, output: Path | None = None) -> float:
        """Run a command; return the seconds that it took.

        Args:
            command: the program and its arguments.
            output: the file for its standard output, if any.
        """
        with open(output or os.devnull, "wb") as file:
            start = time.perf_counter()
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, text=True,
                env=self.environment, timeout=COMMAND_TIMEOUT, check=False,
            )  # fmt: skip
            seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
        return seconds

    def run_module(self, module: str, *arguments: str | Path) -> dict[str, float]:
        """Run a Python module as a program; return the JSON that it prints."""
        output = self.folder / "output.json"
        self.run(sys.executable, "-m", module, *arguments, output=output)
        return json.loads(output.read_bytes())  # type: ignore[no-any-return]  # a dictionary

    def into_folder(self, work: Callable[[Path], float]) -> float:
        """Call *work* with the path of a folder that it makes; remove the folder, and return the result."""
        folder = self.folder / "made"
        try:
            return work(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def need_space(self, size: int) -> None:
        """Make sure that *size* bytes of disk are free.

        Raises:
            RuntimeError: they are not.
        """
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise RuntimeError(
                f"{self.folder} has {free / 1e9:.0f} GB free and needs {size / 1e9:.0f}; set TMPDIR to a larger disk"
            )


@contextlib.contextmanager
def workspace(most_runs: int | None = None) -> Iterator[Workspace]:
    """Make a workspace in ``$TMPDIR``, or in ``/var/tmp``, which is on a disk; remove it at the end."""
    place = os.environ.get("TMPDIR") or "/var/tmp"
    with tempfile.TemporaryDirectory(prefix="idcfs-bench-", dir=place) as folder:
        yield Workspace(Path(folder), most_runs)


def read_status(path: Path) -> dict[str, Any]:
    """The content of the status.json of the mount on *path*."""
    return json.loads((path / ".idc" / "status.json").read_bytes())  # type: ignore[no-any-return]  # a dictionary


def unmount(path: Path) -> None:
    """Unmount *path* if it is mounted, even while it is in use."""
    while str(path) in {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}:
        subprocess.run(["fusermount3", "-u", "-z", "--", path], check=True)


def touch_memory(size: int = TOUCHED_BYTES) -> None:
    """Write to *size* bytes of memory, at most half of the free memory, which the kernel then allocates next.

    The host gives a virtual machine its memory page by page at the first write, which takes six times as long as later
    ones. Memory that was free for some seconds may have gone back to the host.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, min(size, available // 2), flags=flags).close()
