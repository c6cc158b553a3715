"""Mountpoints: what is mounted where, whether a folder can take a mount, and unmounting; synchronous.

Everything is read from the kernel (/proc/self/mountinfo), so there is no list of mounts to keep true. Nothing
in here touches what is below a mountpoint, except `check` after it has seen that nothing is mounted there.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from idcfs.errors import MountFailed, UsageError

SUBTYPE = "idcfs"
FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONFIG = Path("/etc/fuse.conf")

ANSWER_TIMEOUT = 5.0
"""Seconds in which a mount that is well answers, even on a busy machine."""

T = TypeVar("T")


class Mount(NamedTuple):
    """A mount as the kernel tells it."""

    path: Path
    kind: str
    device: str


def mounts() -> list[Mount]:
    """All mounts that this process sees, the last one on a path last."""
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in a text such as /proc/self/mountinfo, in its order."""
    found = []
    # Not splitlines(): the kernel leaves other line ends, such as a form feed, as they are in paths.
    for line in text.removesuffix("\n").split("\n"):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        # The kernel writes blanks and the like in octal (proc_pid_mountinfo(5)).
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[4])
        found.append(Mount(Path(path), after.split(" ")[0], fields[2]))
    return found


def idcfs_mounts() -> list[Path]:
    """Where idcfs is mounted."""
    return [mount.path for mount in mounts() if mount.kind == f"fuse.{SUBTYPE}"]


def absolute(path: Path) -> Path:
    """The path as the kernel would name it; it may be a mount that is dead or hangs.

    Raises:
        UsageError: there is no such home folder.
        MountFailed: it is inside a mount that hangs.
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
        # Not resolve(), which stats each part: a mount that hangs does not answer that.
        file = os.open(path, os.O_PATH)
    except OSError:
        return path.resolve()
    try:
        return Path(os.readlink(f"/proc/self/fd/{file}"))
    finally:
        os.close(file)


def in_time(call: Callable[[], T]) -> T:
    """What *call* gives, which asks a mount something. A thread waits for it: whoever asks could not be ended.

    Raises:
        TimeoutError: nothing has come in `ANSWER_TIMEOUT` seconds.
        Exception: whatever the call raises.
    """
    answers: list[T] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(call())
        except Exception as error:
            failures.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_TIMEOUT)
    for error in failures:
        raise error
    for answer in answers:
        return answer
    raise TimeoutError(errno.ETIMEDOUT, f"no answer in {ANSWER_TIMEOUT:g} seconds")


def is_dead(path: Path) -> bool:
    """Whether an idcfs mount is there whose daemon is gone; one that hangs is not."""
    if path not in idcfs_mounts():
        return False
    try:
        # Not stat: the kernel answers that from what it remembers of the root.
        in_time(lambda: os.statvfs(path))
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def prepare(path: Path, recover: bool) -> bool:
    """Make sure that *path* can take a mount: an empty folder, created if only it is missing, as is returned.

    Args:
        path: an absolute path.
        recover: replace a mount whose daemon is gone.

    Raises:
        MountFailed: it cannot, and why.
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
        raise MountFailed(f"{path} is not yours to write, so you cannot mount on it; choose another folder")
    return is_new


@contextlib.contextmanager
def prepared(path: Path, recover: bool) -> Iterator[None]:
    """`prepare`, and take back the folder it made if the mount then fails.

    Raises:
        MountFailed: as `prepare`.
    """
    is_new = prepare(path, recover)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def check_machine(allow_other: bool) -> None:
    """Make sure that this machine lets this user mount.

    Raises:
        MountFailed: it does not, and what to do.
    """
    if not FUSE_DEVICE.exists():
        raise MountFailed(
            f"{FUSE_DEVICE} is missing; load the kernel module (sudo modprobe fuse), or start the container "
            f"with --device {FUSE_DEVICE} --cap-add SYS_ADMIN"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MountFailed(f"{FUSE_DEVICE} is not open to you; ask for membership in its group, or mount as root")
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
    """Unmount *path*; *lazy* lets go of it even while it is in use. Blocks until it is done.

    Raises:
        MountFailed: it is not mounted, or in use.
    """
    if path not in idcfs_mounts():
        raise MountFailed(f"{path}: idcfs is not mounted here; see where with: idcfs status")
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().removeprefix("fusermount3: ")
        raise MountFailed(f"{path} is not unmounted ({reason}); close what uses it (fuser -vm {path}), or add --lazy")


def device(path: Path) -> str | None:
    """The number of the device that is mounted on *path*, as major:minor."""
    return next((mount.device for mount in reversed(mounts()) if mount.path == path), None)


def daemon_limits(path: Path) -> Path | None:
    """The folder of /sys in which the kernel keeps the limits of the FUSE connection mounted on *path*."""
    number = device(path)
    return None if number is None else Path("/sys/fs/fuse/connections") / number.partition(":")[2]
