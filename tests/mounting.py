"""Mounts for tests: real ones, made by the installed command, that clean up after themselves."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.processes import PATIENCE, is_running

T = TypeVar("T")

ORDINARY_USER = 65534
"""Nobody: on every Linux system, and without rights."""

_PYTHON = Path(sys.executable).resolve()

needs_another_user = pytest.mark.skipif(
    os.getuid() != 0 or not all(path.stat().st_mode & 0o001 for path in (_PYTHON, *_PYTHON.parents)),
    reason="only root can become another user, who needs a Python that is not in somebody's home",
)

CONNECTIONS = Path("/sys/fs/fuse/connections")
"""The kernel's control of FUSE mounts."""

LONGEST = 240
"""Seconds after which a command is taken never to end; what takes longest is the first mount of the real index."""


@dataclass
class Commands:
    """Runs idcfs with a home of its own, as root or as an ordinary user."""

    home: Path
    user: int | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path, timeout: float = LONGEST) -> subprocess.CompletedProcess[str]:
        """Run a command line; idcfs is the first word unless another program is."""
        return subprocess.run(
            [str(argument) for argument in arguments],
            capture_output=True, text=True, timeout=timeout, env=self.variables(), check=False,
            **self.identity(),
        )  # fmt: skip

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command line and go on."""
        return subprocess.Popen(
            [str(argument) for argument in arguments], text=True, env=self.variables(), **self.identity(), **options
        )

    def idcfs(self, *arguments: str | Path, timeout: float = LONGEST) -> subprocess.CompletedProcess[str]:
        """Run idcfs."""
        return self.run("idcfs", *arguments, timeout=timeout)

    def variables(self) -> dict[str, str]:
        """The environment: nothing of the tester's own settings."""
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "LC_ALL"}}
        return {**kept, "HOME": str(self.home), **self.environment}

    def identity(self) -> dict[str, Any]:
        """Who runs it."""
        if self.user is None:
            return {}
        return {"user": self.user, "group": self.user, "extra_groups": []}

    @contextlib.contextmanager
    def mounted(self, path: Path, *flags: str | Path) -> Iterator[Path]:
        """A mount on *path* for the length of the context; whatever happens, nothing stays behind."""
        done = self.idcfs("mount", *flags, path)
        assert done.returncode == 0, done.stderr
        # Not read here: root may not look into another user's mount.
        daemon = int(json.loads(self.run("cat", path / ".idc" / "status.json").stdout)["pid"])
        try:
            yield path
        finally:
            self.end(path, daemon)

    def end(self, path: Path, daemon: int) -> None:
        """Unmount, and see that the daemon goes."""
        self.idcfs("unmount", "--lazy", path)
        deadline = time.monotonic() + PATIENCE
        while is_running(daemon) and time.monotonic() < deadline:
            time.sleep(0.02)
        if is_running(daemon):
            os.kill(daemon, 9)
            raise AssertionError(f"the daemon {daemon} of {path} did not end")


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """*path*, which *make* makes in the first process that needs it; the others wait for it."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            try:
                make(path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
    return path


def unmount_below(folder: Path) -> None:
    """Unmount what is mounted in a folder, as after tests that were killed."""
    points = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    command = ["umount", "--lazy"] if os.getuid() == 0 else ["fusermount3", "-uz"]
    for point in reversed(points):
        if point.startswith(f"{folder}/"):
            subprocess.run([*command, point], check=True)


RECOVERY_SECONDS = 60.0
"""Longer than a failure is remembered, and than a breaker that has opened a few times stays open."""


def once_recovered(call: Callable[[], T]) -> T:
    """What a call on a mount gives soon after its mirror is well again."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            return call()
        except (OSError, subprocess.CalledProcessError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def status(path: Path) -> dict[str, Any]:
    """What a mount says about itself."""
    return json.loads((path / ".idc" / "status.json").read_bytes())  # type: ignore[no-any-return]


def mirror_series(mirror: Path) -> dict[str, Path]:
    """The series of a folder mirror by UUID."""
    return {series.name: series for series in sorted(mirror.glob("*/*-*")) if series.is_dir()}


def checksums(folder: Path) -> Mapping[str, str]:
    """sha256sum of every file of a folder, by its path below it."""
    names: Sequence[str] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if not names:
        return {}
    out = subprocess.run(["sha256sum", "--", *names], cwd=folder, capture_output=True, text=True, check=True).stdout
    return {line[66:]: line[:64] for line in out.splitlines()}
