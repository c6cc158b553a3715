"""Layouts: templates of folders, and index values as safe path components; pure.

A template is idc-index's `dirTemplate`: components between slashes, each of literal text and `%word`s that stand for
columns of the index. Only what a path cannot hold, or would control a terminal, is percent-encoded. So an ordinary
value is its own name, and `unescape` returns the value of every name that was not cut.
"""

import hashlib
import re
from typing import NamedTuple

from idcfs.errors import UsageError
from idcfs.printable import UNPRINTABLE

DEFAULT_TEMPLATE = "%collection_id/%PatientID/%StudyInstanceUID/%Modality_%SeriesInstanceUID"

FLAT_TEMPLATE = "%Modality_%SeriesInstanceUID"
"""The template that an empty one stands for: one flat folder of series."""

MAX_COMPONENT_BYTES = 255
"""The longest name of a file or folder on Linux (NAME_MAX)."""

NO_VALUE = "_"
"""The name of a value that is NULL or empty."""

COHORTS = "cohorts"
"""The folder that idcfs adds at the root of a mount."""

COHORTS_VALUE = f"%{ord(COHORTS[0]):02X}{COHORTS[1:]}"
"""The name of a value at the root that would have the name of that folder."""

PLAIN_COMPONENT = r"[A-Za-z0-9_ ^+=,-][A-Za-z0-9_ .^+=,-]{0,199}"
"""A regular expression for names that need no escaping; some others do not need it either."""

_UNSAFE = re.compile(rf"/|{UNPRINTABLE}|%(?=[0-9A-Fa-f]{{2}})|^\.")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")


class Column(NamedTuple):
    """A `%word` of a template: the column whose value stands there."""

    name: str


class Template(NamedTuple):
    """A layout: for each level of folders, the parts of its names. Each folder of the last level is one series."""

    text: str
    levels: tuple[tuple[str | Column, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template uses, each once, in order."""
        parts = (part.name for level in self.levels for part in level if isinstance(part, Column))
        return tuple(dict.fromkeys(parts))


def parse_template(text: str, columns: frozenset[str]) -> Template:
    """Parse a template whose words are among *columns*.

    An empty one is `FLAT_TEMPLATE`. Of several columns whose names follow a `%` the longest counts, so that
    `%Modality_%SeriesInstanceUID` is Modality, an underscore, and SeriesInstanceUID.

    Raises:
        UsageError: a word is no column, a component is empty, or there are too many levels.
    """
    components = (text.strip().strip("/") or FLAT_TEMPLATE).split("/")
    if not all(components):
        raise UsageError(f"layout {text!r}: an empty folder name; write components as %column between slashes")
    # A level number has 4 bits in an inode number, and level 0 is the root.
    if len(components) > 15:
        raise UsageError(f"layout {text!r}: more than 15 levels of folders")
    return Template(text, tuple(_parse_component(component, columns, text) for component in components))


def _parse_component(component: str, columns: frozenset[str], text: str) -> tuple[str | Column, ...]:
    literal, *rest = component.split("%")
    parts: list[str | Column] = [literal] if literal else []
    for piece in rest:
        word = max((c for c in columns if piece.startswith(c)), key=len, default="")
        if not word:
            wanted = re.match(r"\w*", piece)
            raise UsageError(
                f"layout {text!r}: %{wanted.group() if wanted else ''} is no column; the usual ones are in "
                f"{DEFAULT_TEMPLATE}"
            )
        parts.append(Column(word))
        if piece != word:
            parts.append(piece[len(word) :])
    return tuple(parts)


def escape(value: str | None) -> str:
    """Return the path component of a value: not empty, not hidden, printable, without a slash, and at most 255 bytes.

    A longer value is cut, and ends in `~` and eight hexadecimal digits of its SHA-256.
    """
    if not value:
        return NO_VALUE
    # Lone surrogates cannot be written as UTF-8, and file names must be.
    value = value.encode("utf-8", "replace").decode()
    escaped = _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match.group().encode()), value)
    return shorten(escaped, MAX_COMPONENT_BYTES, value)


def unescape(component: str) -> str:
    """Return the value whose `escape` is *component*, if it was not cut."""
    return _ESCAPE.sub(lambda match: bytes([int(match.group(1), 16)]), component.encode()).decode()


def with_suffix(component: str, suffix: str) -> str:
    """Return *component* with ``_`` and *suffix* at its end, cut to 255 bytes, so that its name is unique."""
    return shorten(component, MAX_COMPONENT_BYTES - len(suffix) - 1, component) + "_" + suffix


def shorten(escaped: str, limit: int, value: str) -> str:
    """Return *escaped* in at most *limit* bytes; one that is cut ends in a digest of *value*."""
    encoded = escaped.encode()
    if len(encoded) <= limit:
        return escaped
    cut = encoded[: limit - 9].decode("utf-8", "ignore")
    # A cut inside %2F would leave text that unescapes to something else.
    cut = re.sub(r"%[0-9A-F]?$", "", cut)
    return f"{cut}~{hashlib.sha256(value.encode()).hexdigest()[:8]}"
