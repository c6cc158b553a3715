"""Descriptions on disk: what a folder of tables holds, as JSON with a checksum; synchronous.

Each carries the format of all the files beside it, so that what another version of idcfs built is built anew.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from idcfs.errors import CatalogueDamaged

FORMAT = 5
"""Changes when a file of the catalogue changes its form, or values are given other names."""


SERIES_TABLE = "series.arrow"
"""The file of the table of all series, in a catalogue's folder."""


def write_description(path: Path, content: dict[str, Any]) -> None:
    """Write *content* to *path*; its folder gets its own name only when all of it is there."""
    text = json.dumps(content)
    path.write_text(json.dumps({"format": FORMAT, "checksum": zlib.crc32(text.encode()), "content": text}))


def read_description(path: Path) -> dict[str, Any]:
    """What was written to *path*.

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
