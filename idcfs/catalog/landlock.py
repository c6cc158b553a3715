"""Landlock (landlock(7)): takes the right to write outside one folder from this process, for good; synchronous.

It holds for the calling thread and all threads and programs that it starts, so it is called before others start.
"""

import ctypes
import os
import struct
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of system calls, equal on all architectures; the C library has no functions for them."""

_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38

_WRITE_FILE = 1 << 1
_CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
"""The rights to remove and make files, folders, links and the like."""

_TRUNCATE = 1 << 14
_TRUNCATE_SINCE = 3
"""The first version of Landlock that can forbid truncating."""


def confine_writes(folder: Path) -> bool:
    """Let this thread, and those it starts, write below *folder* only; returns False if the kernel has no Landlock."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    writing = _WRITE_FILE | _CHANGE_FOLDER | (_TRUNCATE if version >= _TRUNCATE_SINCE else 0)
    handled = struct.pack("=Q", writing)
    rules = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    below = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = struct.pack("=Qi", writing, below)
        done = (
            rules >= 0
            and libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, allowed, 0) == 0
            and libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
            and libc.syscall(_RESTRICT_SELF, rules, 0) == 0
        )
        if not done:
            raise OSError(ctypes.get_errno(), f"writing cannot be confined to {folder}")
    finally:
        os.close(below)
        if rules >= 0:
            os.close(rules)
    return True
