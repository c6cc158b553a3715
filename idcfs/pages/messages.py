"""What the process that fills the kernel's pages is asked; pure."""

from typing import NamedTuple


class Device(NamedTuple):
    """The options: descriptors of the mount's /dev/fuse, and of the file that takes the order to abort the mount."""

    device: int
    abort: int


class Store(NamedTuple):
    """Store *length* bytes of the arena from `at` on in the pages of *inode* from *offset* on; answered by `Stored`."""

    inode: int
    offset: int
    at: int
    length: int


class Stored(NamedTuple):
    """Whether the kernel took the bytes: it does for files that it knows."""

    is_taken: bool
