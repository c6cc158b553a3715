"""The FUSE adapter: answers pyfuse3's requests from the providers of the tree, and turns errors into errnos.

Runs in trio's loop. Every handler goes through `answered`, because an exception that is no FUSEError would end the
whole mount. `forget` gives no answer, so any exception would, and it catches them itself.
"""

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from idcfs import errors
from idcfs.metrics import Metrics
from idcfs.mount.crawlers import Crawlers
from idcfs.node import Node
from idcfs.tree.filesystem import FileSystem
from idcfs.tree.provider import ENTRIES_AT_ONCE

log = logging.getLogger(__name__)

FOR_EVER = 10**9
"""Seconds that the kernel keeps what never changes: thirty years, longer than any mount."""

BLOCK_SIZE = 32 << 10
"""st_blksize: what Python's and C's buffered files read at a time, so what a header scan asks for.

The kernel makes 64 kB of a first read of so many, but 128 kB of a longer one. Tools that copy read more anyway.
"""

ERRNOS: dict[type[BaseException], int] = {
    errors.IdcfsError: errno.EIO,
    errors.NotFound: errno.ENOENT,
    errors.NotAFolder: errno.ENOTDIR,
    errors.IsAFolder: errno.EISDIR,
    errors.ReadOnly: errno.EROFS,
    errors.NoSuchAttribute: pyfuse3.ENOATTR,
    errors.AccessDenied: errno.EACCES,
    errors.CrawlerRefused: errno.EACCES,
    errors.Unreachable: errno.EHOSTUNREACH,
    errors.Stalled: errno.ETIMEDOUT,
    errors.DeadlineExceeded: errno.ETIMEDOUT,
    errors.ObjectChanged: errno.ESTALE,
    errors.AlreadyThere: errno.EEXIST,
    errors.NameRefused: errno.EINVAL,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.NoSpace: errno.ENOSPC,
    errors.QueryRefused: errno.EINVAL,
    errors.QueryTooLong: errno.EFBIG,
}
"""The errno of a class of errors, and of those of its subclasses that are not listed."""

_QUIET = (
    errors.NotFound, errors.NotAFolder, errors.IsAFolder, errors.ReadOnly, errors.NoSuchAttribute, errors.AlreadyThere,
    errors.NameRefused, errors.NameTooLong, errors.QueryRefused,
    # Their reason is in the log already, in one line for all of them.
    errors.CrawlerRefused, errors.MirrorAway,
)  # fmt: skip
"""Errors that are not logged, because tools and the authors of queries provoke them all the time."""

_WRITES = os.O_WRONLY | os.O_RDWR

P = ParamSpec("P")
T = TypeVar("T")


def answered(
    handler: Callable[Concatenate["Adapter", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Adapter", P], Coroutine[Any, Any, T]]:
    """Let a handler answer with an errno whatever goes wrong in it; repairs a damaged catalogue once."""

    @functools.wraps(handler)
    async def wrapper(self: "Adapter", *arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            try:
                return await handler(self, *arguments, **keywords)
            except errors.CatalogueDamaged as error:
                log.warning("%s; building the catalogue again", error)
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
        xattr: whether there are extended attributes; if not, the kernel does not ask a second time.
        all_write: whether every user who may reach the mount may write what can be written.
        crawlers: programs that get nothing for which a mirror would be asked.
    """

    supports_dot_lookup = False

    def __init__(
        self,
        filesystem: FileSystem,
        metrics: Metrics,
        xattr: bool,
        all_write: bool = False,
        crawlers: Crawlers | None = None,
    ) -> None:
        super().__init__()
        self.filesystem = filesystem
        self._metrics = metrics
        self._xattr = xattr
        self._crawlers = crawlers or Crawlers(())
        self._refused: set[str] = set()
        self._owner = os.getuid(), os.getgid()
        self._write_mode = 0o222 if all_write else stat.S_IWUSR

    def fail(self, error: Exception) -> NoReturn:
        """Count an error, log it if a person should know, and raise the FUSEError for it."""
        error = errors.first_error(error)
        number = next((ERRNOS[kind] for kind in type(error).__mro__ if kind in ERRNOS), errno.EIO)
        if type(error) is not errors.NotThereNow:
            self._metrics.errors[type(error).__name__] += 1
        if not isinstance(error, errors.IdcfsError):
            log.error("a request failed", exc_info=error)
        elif isinstance(error, _QUIET):
            log.debug("%s", error)
        else:
            log.warning("%s: %s", errno.errorcode[number], error)
        raise FUSEError(number) from None

    def _refuse_crawlers(self, ctx: RequestContext) -> None:
        crawler = self._crawlers.find(ctx.pid)
        if crawler is None:
            return
        if crawler not in self._refused:
            self._refused.add(crawler)
            log.info("%s reads every file it finds, and is refused; --refuse says what is", crawler)
        raise errors.CrawlerRefused(f"{crawler} is refused")

    def _fill(self, entry: EntryAttributes, node: Node) -> EntryAttributes:
        entry.st_ino = node.inode
        entry.st_mode = stat.S_IFDIR | 0o555 if node.is_folder else stat.S_IFREG | 0o444
        if node.writable:
            entry.st_mode |= self._write_mode
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
        """Answer a look-up; the kernel also keeps that a name is missing, where no name is ever added."""
        provider, folder = self.filesystem.find(parent_inode)
        if provider.is_of_mirror(folder, name):
            self._refuse_crawlers(ctx)
        try:
            node = await provider.lookup(folder, name)
        except errors.NotThereNow:
            raise
        except errors.NotFound as error:
            log.debug("%s", error)
            missing = EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = FOR_EVER
            return missing
        self.filesystem.remember(node.inode)
        return self._fill(EntryAttributes(), node)

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Answer stat."""
        provider, address = self.filesystem.find(inode)
        return self._fill(EntryAttributes(), await provider.attributes(address))

    @answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Everything may be read by whoever may reach the mount; little may be written."""
        if not mode & (os.W_OK | os.X_OK):
            return True
        provider, address = self.filesystem.find(inode)
        node = await provider.attributes(address)
        if mode & os.W_OK and not node.writable:
            raise errors.ReadOnly("idcfs is read-only here")
        return node.is_folder or not mode & os.X_OK

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a folder."""
        provider, folder = self.filesystem.find(inode)
        if provider.is_of_mirror(folder):
            self._refuse_crawlers(ctx)
        return self.filesystem.add_folder(await provider.entries(folder))

    @answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Fill the kernel's buffer with entries and their attributes."""
        entry, page = EntryAttributes(), self.filesystem.folders[fh].page
        folders_time: int | None = None
        first_id, last = start_id, fh
        while True:
            entries = await page(start_id)
            for name, node in entries:
                if node.is_folder and node.modified_ns == folders_time:
                    # Folders of one view differ in nothing else, and a listing can have many thousands.
                    entry.st_ino, entry.st_nlink = node.inode, node.links
                else:
                    self._fill(entry, node)
                    folders_time = node.modified_ns if node.is_folder else None
                if not pyfuse3.readdir_reply(token, name, entry, start_id + 1):
                    break
                start_id, last = start_id + 1, node.inode
            else:
                if len(entries) == ENTRIES_AT_ONCE:
                    continue
            # An entry in the answer counts as looked up; those of one folder are all of one view, or all files.
            return self.filesystem.remember(last, start_id - first_id)

    @answered
    async def releasedir(self, fh: int) -> None:
        """Close a folder."""
        self.filesystem.release_folder(fh)

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file; the pages of what never changes stay in the kernel's cache."""
        provider, address = self.filesystem.find(inode)
        if flags & (_WRITES | os.O_TRUNC):
            file = await provider.draft(address, bool(flags & os.O_APPEND), bool(flags & os.O_TRUNC))
        else:
            if provider.is_of_mirror(address):
                self._refuse_crawlers(ctx)
            file = await provider.content(address)
        return FileInfo(fh=self.filesystem.add_file(file), keep_cache=file.permanent, direct_io=not file.permanent)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read from an open file."""
        return await self.filesystem.files[fh].read(off, size)  # type: ignore[return-value]  # pyfuse3 takes any buffer

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write into a query."""
        return self.filesystem.files[fh].write(off, buf)

    @answered
    async def flush(self, fh: int) -> None:
        """Answer close: what was written is kept and, if it does not work, refused."""
        await self.filesystem.files[fh].flush()

    @answered
    async def release(self, fh: int) -> None:
        """Close a file; no program gets an error any more."""
        await self.filesystem.release_file(fh)

    @answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Cut a query. Its mode, owner and times stay: editors set them, and are content when that does not fail."""
        provider, address = self.filesystem.find(inode)
        node = await provider.attributes(address)
        if node.is_folder or not node.writable:
            raise errors.ReadOnly("idcfs is read-only here")
        if fields.update_size and fh is not None:
            self.filesystem.files[fh].resize(attr.st_size)
        elif fields.update_size:
            await provider.resize(address, attr.st_size)
        return await self.getattr(inode, ctx)

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Make a cohort."""
        provider, folder = self.filesystem.find(parent_inode)
        return self._fill(EntryAttributes(), await provider.create(folder, name))

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a cohort, although it shows folders."""
        provider, folder = self.filesystem.find(parent_inode)
        await provider.delete(folder, name)

    @answered
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        """Give a cohort another name, never in the place of another one."""
        provider, folder = self.filesystem.find(parent_inode_old)
        await provider.rename(folder, name_old, self.filesystem.find(parent_inode_new)[1], name_new)

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The totals of the index; nothing is free, because nothing can be written."""
        counts = self.filesystem.catalogue.counts
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = counts["bytes"] // 4096
        answer.f_files = counts["instances"]
        answer.f_namemax = 255
        return answer

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        """The names of extended attributes."""
        self._need_xattr()
        return [name.encode() for name in await self.filesystem.xattrs(inode)]

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """An extended attribute."""
        self._need_xattr()
        return (await self.filesystem.xattr(inode, name.decode(errors="replace"))).encode()

    def _need_xattr(self) -> None:
        if not self._xattr:
            raise FUSEError(errno.ENOSYS)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Count references that the kernel gives back; only the views of cohorts are kept for them."""
        for inode, times in inode_list:
            try:
                self.filesystem.forget(inode, times)
            except Exception as error:
                with contextlib.suppress(FUSEError):
                    self.fail(error)


async def _refuse(self: Adapter, *arguments: Any) -> NoReturn:
    raise FUSEError(errno.EROFS)


for _name in ("create", "mknod", "symlink", "link", "unlink", "setxattr", "removexattr"):
    setattr(Adapter, _name, _refuse)
