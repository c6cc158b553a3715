"""What a process that asks a mirror is asked, and what it answers; pure. A `Get` is answered by `Done`."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class ClientOptions(NamedTuple):
    """The options of a process: the arguments of `S3Client`."""

    endpoint: str
    timeout: float
    max_connections: int


class List(NamedTuple):
    """Ask for a page of a listing; answered by `Page`."""

    bucket: str
    prefix: str
    token: str | None


class Page(NamedTuple):
    """The fields of `ListPage`; each object is the fields of an `ObjectInfo`."""

    objects: Sequence[Sequence[Any]]
    token: str | None


class Get(NamedTuple):
    """Ask for the bytes of a `Range`, to be put into the arena at `at`; `wanted` is its fields.

    With `wants_progress`, `Filled` comes now and then before the answer. After the answer the process writes no more to
    that region.
    """

    wanted: Sequence[Any]
    at: int
    wants_progress: bool


class Filled(NamedTuple):
    """How many bytes have come."""

    length: int
