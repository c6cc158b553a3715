"""Folders that nobody else may change: checked before what is in them is believed; synchronous.

Who can write a cache folder can have wrong bytes served under right names: a checksum tells damage, not intent.
"""

import os
import pwd
import stat
from pathlib import Path

from idcfs.errors import IdcfsError

UMASK = 0o077
"""For all that idcfs writes on its own: folders get 0700, files 0600."""


def check_folder(folder: Path, what: str, flag: str, error: type[IdcfsError], may_be_foreign: bool = False) -> None:
    """Make sure that only this user, or root, can change *folder*, if it is there.

    Root is trusted by everybody, and is held to the same: in another user's folder it would believe that user.

    Args:
        folder: the folder.
        what: it is, for the message.
        flag: of the command line, that names another.
        error: what is raised.
        may_be_foreign: whether another user may own it; whoever names it then trusts that user.
    """
    try:
        found = folder.stat()
    except OSError:
        # Whoever uses it says what is wrong.
        return
    if not stat.S_ISDIR(found.st_mode):
        return
    if not may_be_foreign and found.st_uid not in {os.geteuid(), 0}:
        raise error(f"{what} {folder} belongs to {_user(found.st_uid)}; choose one of your own with {flag}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise error(f"{what} {folder} can be changed by other users; take that back: chmod go-w {folder}")


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
