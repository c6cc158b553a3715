"""The things that go wrong in idcfs, as types; pure.

Two families. `IdcfsError` and its direct children are told to a person by the command line, which maps each
to an exit code. `ReadError` and its children happen under a file-system call; the FUSE adapter maps each to
an errno. Nothing in here knows exit codes or errnos.
"""

from typing import TypeVar


class IdcfsError(Exception):
    """Something a person should read: the message is one line that names the thing and the way out."""


class UsageError(IdcfsError):
    """A flag, variable, setting or argument that cannot be used."""


class IndexUnusable(IdcfsError):
    """The IDC index is missing, unreadable, or lacks what the tree is built from."""


class MountFailed(IdcfsError):
    """The mountpoint or the machine's FUSE cannot be used."""


class CacheUnusable(IdcfsError):
    """The cache folder cannot be used at all."""


class DamageFound(IdcfsError):
    """A check of the cache found damage, and left it."""


class CatalogueDamaged(IdcfsError):
    """A catalogue file does not hold what its checksum says; building it again repairs it."""


class ChildEnded(IdcfsError):
    """A child process ended without saying why."""


class QueryRefused(IdcfsError):
    """SQL that does not parse or bind, asks for what it may not, or needs more than it may."""


class QueryTooLong(QueryRefused):
    """More SQL, or a longer manifest, than a cohort may have."""


class QueryTooCostly(QueryRefused):
    """A query that ran out of time or memory, which may go another way when the machine is less busy."""


class CohortsUnusable(IdcfsError):
    """The folder that the cohorts are kept in cannot be read or written."""


class ReadError(IdcfsError):
    """A file-system call that cannot be answered."""


class NotFound(ReadError):
    """No such name, or the object is gone from every bucket."""


class NotThereNow(NotFound):
    """Nothing has this name now, but something may soon."""


class SeriesMissing(NotThereNow):
    """No bucket of the mirror has the series."""


class NotAFolder(ReadError):
    """A folder operation on a file."""


class IsAFolder(ReadError):
    """A file operation on a folder."""


class ReadOnly(ReadError):
    """A write where idcfs has nothing to write to."""


class AlreadyThere(ReadError):
    """A name that is taken."""


class NameRefused(ReadError):
    """A name that a cohort cannot have."""


class NameTooLong(ReadError):
    """A name that is longer than a cohort's may be."""


class NoSpace(ReadError):
    """No room for one more cohort, or on the disk."""


class NoSuchAttribute(ReadError):
    """An extended attribute that the file or folder does not have."""


class AccessDenied(ReadError):
    """The mirror refuses the object (HTTP 403)."""


class CrawlerRefused(ReadError):
    """A program that reads every file it finds asks for what a mirror would have to be asked for."""


class Unreachable(ReadError):
    """The mirror cannot be reached, or answers that it cannot serve (5xx, 429, a broken connection)."""


class Stalled(Unreachable):
    """The mirror was reached, or not even refused to be, and sends nothing or next to nothing."""


class MirrorAway(Unreachable):
    """The mirror could not be reached a moment ago, as was told then, and was not asked now."""


class DeadlineExceeded(ReadError):
    """The answer did not come within the time one call may take."""


class ObjectChanged(ReadError):
    """The object is no longer the one that was listed (HTTP 412, or another ETag or size)."""


class Untrusted(ReadError):
    """The answer is not what was asked for: wrong length, range, key or form."""


Ours = TypeVar("Ours", bound=IdcfsError)


def again(error: Ours) -> Ours:
    """The same error, to be raised for another caller: a shared one would collect all their tracebacks."""
    return type(error)(*error.args)


def first_error(error: Exception) -> Exception:
    """The error itself, or the first one of a nursery's group; one that is none of ours comes first."""
    if not isinstance(error, ExceptionGroup):
        return error
    ours, others = error.split(IdcfsError)
    return first_error((others or ours or error).exceptions[0])
