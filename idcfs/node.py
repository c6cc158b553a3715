"""What is known of a file or folder; pure."""

from typing import NamedTuple


class Node(NamedTuple):
    """A file or folder. Sizes are in bytes, times in nanoseconds since the epoch.

    What is not `permanent` may be another thing the next time it is asked for. In a `writable` folder cohorts can be
    made; a `writable` file is a cohort's query.
    """

    inode: int
    is_folder: bool
    links: int
    size: int
    modified_ns: int
    permanent: bool = True
    writable: bool = False
