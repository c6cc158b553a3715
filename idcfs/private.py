"""Folders that no other user may change, which is checked before their files are trusted; synchronous.

Whoever can write to a cache folder can have wrong bytes served under right names: checksums detect damage, not intent.
"""

import os
import pwd
import stat
from pathlib import Path

from idcfs.errors import IdcfsError

UMASK = 0o077
"""The umask for all that idcfs writes: folders get 0700, files 0600."""


def check_folder(folder: Path, what: str, flag: str, error: type[IdcfsError], may_be_foreign: bool = False) -> None:
    """Make sure that only this user, or root, can change *folder*, if it exists.

    Everybody trusts root. The check holds for root, too, which would otherwise trust the owner of another's folder.

    Args:
        folder: the folder.
        what: its kind, for the message.
        flag: the flag that names another folder, for the message.
        error: the type of the error that is raised.
        may_be_foreign: whether another user may own it; whoever names such a folder trusts that user.
    """
    try:
        found = folder.stat()
    except OSError:
        # Using the folder will raise the error.
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
