"""Descriptions: JSON files with a checksum that say what a folder of tables holds; synchronous.

Each has the format of all files in its folder. A folder of another version's format is built again.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from idcfs.errors import CatalogueDamaged

FORMAT = 5
"""To be raised when a file of the catalogue gets another form, or values get other names."""

SERIES_TABLE = "series.arrow"
"""The file of the table of all series, in a catalogue's folder."""


def write_description(path: Path, content: dict[str, Any]) -> None:
    """Write *content* to *path*; not atomic, because the folder is renamed when it is complete."""
    text = json.dumps(content)
    path.write_text(json.dumps({"format": FORMAT, "checksum": zlib.crc32(text.encode()), "content": text}))


def read_description(path: Path) -> dict[str, Any]:
    """Return what was written to *path*.

    Raises:
        CatalogueDamaged: it is missing, damaged, or of another format.
    """
    try:
        written = json.loads(path.read_bytes())
        known, text = written["format"] == FORMAT, str(written["content"])
        if not known or zlib.crc32(text.encode()) != written["checksum"]:
            raise CatalogueDamaged(f"{path} is damaged or of another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CatalogueDamaged(f"{path} is not readable: {error}") from error
    return dict(json.loads(text))
