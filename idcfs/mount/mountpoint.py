"""Mountpoints: what is mounted where, whether a folder can be mounted on, and unmounting; synchronous.

All is read from the kernel (/proc/self/mountinfo), so there is no list of mounts that could become wrong. Nothing below
a mountpoint is touched, except by `prepare` once it knows that nothing is mounted there.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import NamedTuple, TypeVar

from idcfs.errors import MountFailed, UsageError

SUBTYPE = "idcfs"
FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONFIG = Path("/etc/fuse.conf")

ANSWER_TIMEOUT = 5.0
"""Seconds within which a healthy mount answers, even on a busy machine."""

T = TypeVar("T")


class Mount(NamedTuple):
    """A mount: its mountpoint, its file-system type, and its device as major:minor."""

    path: Path
    kind: str
    device: str


def mounts() -> list[Mount]:
    """All mounts that this process sees; of those on one path, the uppermost comes last."""
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in a text with the form of /proc/self/mountinfo, in its order."""
    found = []
    # Not splitlines(): paths may contain what it takes for line ends, such as form feeds.
    for line in text.removesuffix("\n").split("\n"):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        # The kernel writes white space and backslashes in octal (proc_pid_mountinfo(5)).
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[4])
        found.append(Mount(Path(path), after.split(" ")[0], fields[2]))
    return found


def idcfs_mounts() -> list[Path]:
    """The mountpoints of all idcfs mounts."""
    return [mount.path for mount in mounts() if mount.kind == f"fuse.{SUBTYPE}"]


def absolute(path: Path) -> Path:
    """The path as the kernel names it; the path may be a mount that is dead or hangs.

    Raises:
        UsageError: there is no such home folder.
        MountFailed: the path is inside a mount that hangs.
    """
    try:
        path = path.expanduser()
        return in_time(lambda: _resolved(path))
    except RuntimeError as error:
        raise UsageError(f"{path}: {error}; write the whole path") from error
    except TimeoutError as error:
        raise MountFailed(f"{path}: {error.strerror}; a disk or a mount on the way there hangs") from error


def _resolved(path: Path) -> Path:
    try:
        # Not resolve(), which stats each part: on a mount that hangs it would wait for ever.
        file = os.open(path, os.O_PATH)
    except OSError:
        return path.resolve()
    try:
        return Path(os.readlink(f"/proc/self/fd/{file}"))
    finally:
        os.close(file)


def in_time(call: Callable[[], T]) -> T:
    """Return the result of *call*, which uses a mount; a thread makes the call, so that only it hangs with the mount.

    Raises:
        TimeoutError: the call has not returned after `ANSWER_TIMEOUT` seconds.
        Exception: whatever the call raises.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    wait([answer], ANSWER_TIMEOUT)
    if not answer.done():
        raise TimeoutError(errno.ETIMEDOUT, f"no answer in {ANSWER_TIMEOUT:g} seconds")
    return answer.result()


def is_dead(path: Path) -> bool:
    """Whether *path* is an idcfs mount whose daemon is gone; a mount that hangs is not dead."""
    if path not in idcfs_mounts():
        return False
    try:
        # Not stat(), which the kernel may answer from its cache.
        in_time(lambda: os.statvfs(path))
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def prepare(path: Path, recover: bool) -> bool:
    """Make sure that *path* is an empty folder to mount on; create it if only its last part is missing.

    A mount there whose daemon is gone is unmounted if *recover* is set. Returns whether the folder was created.

    Raises:
        MountFailed: the path cannot be mounted on, for the reason in the message.
    """
    if is_dead(path):
        if not recover:
            raise MountFailed(
                f'{path}: the idcfs that was mounted here is gone ("Transport endpoint is not connected"); '
                f"mount with --recover, or unmount it: fusermount3 -u {path}"
            )
        unmount(path, lazy=True)
    if path in idcfs_mounts():
        raise MountFailed(f"{path}: idcfs is mounted here already; unmount it first: idcfs unmount {path}")
    if path in {mount.path for mount in mounts()}:
        raise MountFailed(f"{path}: something else is mounted here; choose another folder")
    if not path.parent.is_dir():
        raise MountFailed(f"{path}: the folder {path.parent} does not exist; create it: mkdir -p {path.parent}")
    is_new = not os.path.lexists(path)
    try:
        path.mkdir(exist_ok=True)
        occupied = any(path.iterdir())
    except FileExistsError:
        raise MountFailed(f"{path} is a file; choose a folder") from None
    except OSError as error:
        raise MountFailed(f"{path}: {error.strerror}; choose a folder that you can write") from error
    if occupied:
        raise MountFailed(f"{path} is not empty; choose an empty folder, which the mount then covers")
    if not os.access(path, os.W_OK):
        raise MountFailed(f"{path}: you may not write to it, so you cannot mount on it; choose another folder")
    return is_new


@contextlib.contextmanager
def prepared(path: Path, recover: bool) -> Iterator[None]:
    """`prepare`, and remove the folder that it created if the mount then fails."""
    is_new = prepare(path, recover)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def check_machine(allow_other: bool) -> None:
    """Make sure that this user can mount on this machine.

    Raises:
        MountFailed: the user cannot; the message has the remedy.
    """
    if not FUSE_DEVICE.exists():
        raise MountFailed(
            f"{FUSE_DEVICE} is missing; load the kernel module (sudo modprobe fuse), or start the container "
            f"with --device {FUSE_DEVICE} --cap-add SYS_ADMIN"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MountFailed(f"{FUSE_DEVICE}: you may not open it; ask for membership in its group, or mount as root")
    if shutil.which("fusermount3") is None:
        raise MountFailed("fusermount3 is missing; install it: sudo apt install fuse3")
    if allow_other and os.getuid() != 0 and not _user_allow_other():
        raise MountFailed(
            f"--allow-other needs a line 'user_allow_other' in {FUSE_CONFIG}; ask the administrator for it"
        )


def _user_allow_other() -> bool:
    try:
        lines = FUSE_CONFIG.read_text().splitlines()
    except OSError:
        return False
    return "user_allow_other" in [line.strip() for line in lines]


def unmount(path: Path, lazy: bool = False) -> None:
    """Unmount *path*, with *lazy* even while it is in use; blocks until fusermount3 ends.

    Raises:
        MountFailed: it is not mounted, or is in use.
    """
    if path not in idcfs_mounts():
        raise MountFailed(f"{path}: idcfs is not mounted here; see where with: idcfs status")
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().removeprefix("fusermount3: ")
        raise MountFailed(f"{path} is not unmounted ({reason}); close what uses it (fuser -vm {path}), or add --lazy")


def device(path: Path) -> str | None:
    """The device that is mounted on *path*, as major:minor; None if there is none."""
    return next((mount.device for mount in reversed(mounts()) if mount.path == path), None)


def daemon_limits(path: Path) -> Path | None:
    """The folder in /sys with the limits of the FUSE connection that is mounted on *path*."""
    number = device(path)
    return None if number is None else Path("/sys/fs/fuse/connections") / number.partition(":")[2]
