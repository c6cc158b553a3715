"""The FUSE adapter: pyfuse3's requests to the file system's calls, and its errors to errnos; nothing else.

Runs in trio's loop. Every handler goes through `answered`, because an exception that is no FUSEError would end
the whole mount.
"""

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from idcfs import errors
from idcfs.filesystem import ENTRIES_AT_ONCE, FileSystem, Node
from idcfs.metrics import Metrics

log = logging.getLogger(__name__)

FOR_EVER = 10**9
"""Seconds that the kernel keeps what never changes: thirty years, longer than any mount."""

BLOCK_SIZE = 128 << 10
"""st_blksize: what tools read at a time, and the kernel's read-ahead by default."""

ERRNOS: dict[type[errors.IdcfsError], int] = {
    errors.NotFound: errno.ENOENT,
    errors.SeriesMissing: errno.ENOENT,
    errors.NotAFolder: errno.ENOTDIR,
    errors.IsAFolder: errno.EISDIR,
    errors.ReadOnly: errno.EROFS,
    errors.NoSuchAttribute: pyfuse3.ENOATTR,
    errors.AccessDenied: errno.EACCES,
    errors.Unreachable: errno.EHOSTUNREACH,
    errors.DeadlineExceeded: errno.ETIMEDOUT,
    errors.ObjectChanged: errno.ESTALE,
    errors.Untrusted: errno.EIO,
}

_ORDINARY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS, pyfuse3.ENOATTR})
"""Errors that tools provoke all the time: told to them, not to the log."""

P = ParamSpec("P")
T = TypeVar("T")


def answered(
    handler: Callable[Concatenate["Adapter", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Adapter", P], Coroutine[Any, Any, T]]:
    """Let a handler answer with an errno whatever goes wrong in it; repairs a damaged catalogue once."""

    @functools.wraps(handler)
    async def wrapper(self: "Adapter", *arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return await handler(self, *arguments, **keywords)
        except FUSEError:
            raise
        except errors.CatalogueDamaged as error:
            log.warning("%s; building the catalogue again", error)
        except Exception as error:
            self.fail(error)
        try:
            await self.filesystem.repair()
            return await handler(self, *arguments, **keywords)
        except FUSEError:
            raise
        except Exception as error:
            self.fail(error)

    return wrapper  # type: ignore[return-value]  # mypy names the first parameter, a Callable cannot


class Adapter(pyfuse3.Operations):
    """Answers the kernel's requests.

    Args:
        filesystem: what answers them.
        xattr: whether extended attributes are told; without, the kernel is told once that there are none.
    """

    supports_dot_lookup = False

    def __init__(self, filesystem: FileSystem, metrics: Metrics, xattr: bool) -> None:
        super().__init__()
        self.filesystem = filesystem
        self._metrics = metrics
        self._xattr = xattr
        self._entry = EntryAttributes()
        self._owner = os.getuid(), os.getgid()

    def fail(self, error: Exception) -> NoReturn:
        """Count an error, log it if a person should know, and raise the FUSEError for it."""
        error = errors.first_error(error)
        number = ERRNOS.get(type(error), errno.EIO)  # type: ignore[arg-type]  # any other class is not in the table
        self._metrics.errors[type(error).__name__] += 1
        if not isinstance(error, errors.ReadError):
            log.error("a request failed", exc_info=error)
        elif number in _ORDINARY:
            log.debug("%s", error)
        else:
            log.warning("%s: %s", errno.errorcode[number], error)
        raise FUSEError(number) from None

    def _fill(self, entry: EntryAttributes, node: Node) -> EntryAttributes:
        entry.st_ino = node.inode
        entry.st_mode = stat.S_IFDIR | 0o555 if node.is_folder else stat.S_IFREG | 0o444
        entry.st_nlink = node.links
        entry.st_size = node.size
        entry.st_blocks = (node.size + 511) // 512
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = node.modified_ns
        entry.st_uid, entry.st_gid = self._owner
        entry.st_blksize = BLOCK_SIZE
        entry.entry_timeout = entry.attr_timeout = FOR_EVER if node.permanent else 0
        return entry

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Answer a look-up; that a name is missing is kept by the kernel, because no name is ever added."""
        try:
            node = await self.filesystem.lookup(parent_inode, name)
        except errors.SeriesMissing:
            raise
        except errors.NotFound as error:
            log.debug("%s", error)
            missing = EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = FOR_EVER
            return missing
        return self._fill(EntryAttributes(), node)

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Answer stat."""
        return self._fill(EntryAttributes(), await self.filesystem.getattr(inode))

    @answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Everything may be read by whoever may reach the mount; nothing may be written by anyone."""
        if mode & os.W_OK:
            raise errors.ReadOnly("idcfs is read-only")
        if mode & os.X_OK:
            return (await self.filesystem.getattr(inode)).is_folder
        return True

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a folder; its handle is its inode number, so nothing is kept for it."""
        await self.filesystem.open_folder(inode)
        return inode

    @answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Fill the kernel's buffer with entries and their attributes."""
        entry = self._entry
        folders_time: int | None = None
        while True:
            entries = await self.filesystem.entries(fh, start_id)
            if not entries:
                return
            for name, node in entries:
                start_id += 1
                if node.is_folder and node.modified_ns == folders_time:
                    # Folders of one view differ in nothing else, and a listing can have many thousands.
                    entry.st_ino, entry.st_nlink = node.inode, node.links
                else:
                    self._fill(entry, node)
                    folders_time = node.modified_ns if node.is_folder else None
                if not pyfuse3.readdir_reply(token, name, entry, start_id):
                    return
            if len(entries) < ENTRIES_AT_ONCE:
                return

    async def releasedir(self, fh: int) -> None:
        """Nothing to do: nothing is kept for an open folder."""

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file to read it; the pages of what never changes stay in the kernel's cache."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND):
            raise errors.ReadOnly("idcfs is read-only")
        handle = await self.filesystem.open(inode)
        is_object = handle == inode
        return FileInfo(fh=handle, keep_cache=is_object, direct_io=not is_object)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read from an open file."""
        return await self.filesystem.read(fh, off, size)  # type: ignore[return-value]  # pyfuse3 takes any buffer

    async def flush(self, fh: int) -> None:
        """Nothing to do: nothing can be written."""

    async def release(self, fh: int) -> None:
        """Close a file."""
        self.filesystem.release(fh)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The totals of the index; nothing is free, because nothing can be written."""
        totals = self.filesystem.totals()
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = totals.size // 4096
        answer.f_files = totals.files
        answer.f_namemax = 255
        return answer

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        """The names of extended attributes."""
        self._need_xattr()
        return [name.encode() for name in await self.filesystem.attributes(inode)]

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """An extended attribute."""
        self._need_xattr()
        return (await self.filesystem.attribute(inode, name.decode(errors="replace"))).encode()

    def _need_xattr(self) -> None:
        if not self._xattr:
            raise FUSEError(errno.ENOSYS)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: an inode number is an address, and nothing is kept for it."""


async def _refuse(self: Adapter, *arguments: Any) -> NoReturn:
    raise FUSEError(errno.EROFS)


for _name in [
    "create",
    "mkdir",
    "mknod",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "setattr",
    "write",
    "setxattr",
    "removexattr",
]:
    setattr(Adapter, _name, _refuse)
