"""Messages between processes: typed records, each of them one line of JSON; pure.

A message is a NamedTuple of values that JSON has. Its line holds the number of the request that it belongs to, whether
it is the last one for that request, the name of its class, and its fields. Each end names the classes that it takes.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from idcfs import errors
from idcfs.errors import IdcfsError

Message = tuple[Any, ...]
"""Any NamedTuple of JSON's values."""


class Cancel(NamedTuple):
    """The request is given up. It is still answered, soon."""


class Done(NamedTuple):
    """The request has been met, and there is nothing to report."""


class Failed(NamedTuple):
    """The request has failed; `kind` is the name of a class in `idcfs.errors`."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: IdcfsError) -> Self:
        """The message that an error travels in."""
        return cls(type(error).__name__, str(error))

    def error(self) -> IdcfsError:
        """The error as it was before it travelled."""
        error: IdcfsError = getattr(errors, self.kind)(self.message)
        return error


class Envelope(NamedTuple):
    """A message on its way."""

    number: int
    is_last: bool
    message: Message


def encode(number: int, message: Message, is_last: bool = True) -> bytes:
    """The line of a message."""
    return json.dumps([number, is_last, type(message).__name__, *message]).encode() + b"\n"


class Decoder:
    """Takes bytes as they come and returns the messages that are complete; *kinds* are their classes."""

    def __init__(self, kinds: Iterable[type[Message]]) -> None:
        self._kinds = {kind.__name__: kind for kind in (*kinds, Cancel, Done, Failed)}
        self._incomplete = b""

    def feed(self, chunk: bytes | bytearray) -> list[Envelope]:
        """The messages that *chunk* completes.

        Raises:
            ValueError, KeyError, TypeError: a line is no message of these classes.
        """
        *lines, self._incomplete = (self._incomplete + chunk).split(b"\n")
        found = []
        for line in lines:
            number, is_last, name, *fields = json.loads(line)
            found.append(Envelope(number, is_last, self._kinds[name](*fields)))
        return found
