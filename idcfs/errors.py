"""What can go wrong in idcfs, as exception classes; pure.

    IdcfsError
      UsageError
      IndexUnusable
      MountFailed
      CacheUnusable
      DamageFound
      CatalogueDamaged
      ChildNotStarted
      ChildEnded
      QueryRefused
        QueryTooLong
        QueryTooCostly
      CohortsUnusable
      ReadError
        NotFound
          NotThereNow
            SeriesMissing
        NotAFolder
        IsAFolder
        ReadOnly
        AlreadyThere
        NameRefused
        NameTooLong
        NoSpace
        NoSuchAttribute
        AccessDenied
        CrawlerRefused
        Unreachable
          Stalled
          MirrorAway
        DeadlineExceeded
        ObjectChanged
        Untrusted

The command line prints the message of an `IdcfsError`; `cli/group.py` maps the class to an exit code. A `ReadError`
ends a file-system call, and so do some of the others; `mount/fuse.py` maps the class to an errno.
"""

from typing import TypeVar


class IdcfsError(Exception):
    """An error that a user should read: the message is one line, which names the cause and the remedy."""


class UsageError(IdcfsError):
    """A flag, environment variable, setting or argument is not valid."""


class IndexUnusable(IdcfsError):
    """The IDC index is missing, is unreadable, or lacks a column that the tree is built from."""


class MountFailed(IdcfsError):
    """The mountpoint, or FUSE on this machine, cannot be used."""


class CacheUnusable(IdcfsError):
    """The cache folder cannot be used at all."""


class DamageFound(IdcfsError):
    """A check of the cache found damage and did not repair it."""


class CatalogueDamaged(IdcfsError):
    """A file of the catalogue does not match its checksum; building the catalogue again repairs it."""


class ChildNotStarted(IdcfsError):
    """A child process could not be started; it may be possible when the machine is less busy."""


class ChildEnded(IdcfsError):
    """A child process ended without reporting a result or an error."""


class QueryRefused(IdcfsError):
    """A query does not parse or bind, reads or writes what it may not, or exceeds a limit."""


class QueryTooLong(QueryRefused):
    """A query or a manifest is longer than that of a cohort may be."""


class QueryTooCostly(QueryRefused):
    """A query ran out of time or memory; on a less busy machine it may succeed."""


class CohortsUnusable(IdcfsError):
    """The folder that stores the cohorts cannot be read or written."""


class ReadError(IdcfsError):
    """A file-system call fails."""


class NotFound(ReadError):
    """The name does not exist, or no bucket has the object any more."""


class NotThereNow(NotFound):
    """The name does not exist now, but may exist soon, so the kernel must not remember that it is missing."""


class SeriesMissing(NotThereNow):
    """No bucket of the mirror has the series."""


class NotAFolder(ReadError):
    """An operation for folders was called on a file."""


class IsAFolder(ReadError):
    """An operation for files was called on a folder."""


class ReadOnly(ReadError):
    """A write was called where nothing can be written."""


class AlreadyThere(ReadError):
    """The name exists already."""


class NameRefused(ReadError):
    """A cohort cannot have this name."""


class NameTooLong(ReadError):
    """The name is longer than that of a cohort may be."""


class NoSpace(ReadError):
    """There is no room for another cohort, or none on the disk."""


class NoSuchAttribute(ReadError):
    """The file or folder does not have this extended attribute."""


class AccessDenied(ReadError):
    """The mirror denies access to the object (HTTP 403)."""


class CrawlerRefused(ReadError):
    """A program that reads every file it finds asked for something that only the mirror has."""


class Unreachable(ReadError):
    """The mirror cannot be reached, or answers that it cannot serve (5xx, 429, a broken connection)."""


class Stalled(Unreachable):
    """The mirror does not answer a connection, or sends nothing or almost nothing over it."""


class MirrorAway(Unreachable):
    """The mirror was not asked, because it could not be reached a moment ago; that was reported then."""


class DeadlineExceeded(ReadError):
    """The answer did not come within the time that one call may take."""


class ObjectChanged(ReadError):
    """The object is no longer the one that was listed (HTTP 412, or another ETag or size)."""


class Untrusted(ReadError):
    """The answer does not match the request: it has a wrong length, range, key or format."""


Ours = TypeVar("Ours", bound=IdcfsError)


def again(error: Ours) -> Ours:
    """Return a copy of *error* to raise for another caller; a shared one would collect the tracebacks of all."""
    return type(error)(*error.args)


def first_error(error: Exception) -> Exception:
    """Return *error* itself, or the first error of a nursery's group; one that is no `IdcfsError` comes first."""
    if not isinstance(error, ExceptionGroup):
        return error
    ours, others = error.split(IdcfsError)
    return first_error((others or ours or error).exceptions[0])
