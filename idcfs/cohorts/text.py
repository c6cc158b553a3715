"""The text of a cohort: its layout, and the SELECT or the manifest that names its series; pure.

A manifest has one series on each line, as the IDC portal and idc-index write it: ``s3://bucket/uuid/*`` (alone, or in a
``cp`` line of s5cmd), ``gs://...``, a crdc_series_uuid or a SeriesInstanceUID. Lines that are blank or start with ``#``
or ``--`` are comments. Everything else is SQL.
"""

import re
from typing import NamedTuple

from idcfs.errors import QueryRefused, QueryTooLong

MAX_SQL = 1 << 20
"""Bytes of SQL: far more than anyone writes by hand, and little enough for DuckDB to parse at once."""

MAX_TEXT = 128 << 20
"""Bytes of a cohort's text: a manifest of every series of IDC takes half of it."""

_LAYOUT = re.compile(r"\s*(?:--|#)\s*layout:(.*)")
_COMMENT = re.compile(r"\s*(?:--|#|$)")
_SQL = re.compile(r"\s*(?:select|with|from|values|table)\b|\s*(?:\(|/\*)", re.IGNORECASE)
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_SERIES = re.compile(
    rf"""\s*(?:
        (?:(?:cp|sync)\s+(?:-\S+\s+)*)?["']?(?:s3|gs)://[^/\s]+/(?P<key>{_UUID})(?:/\*?)?["']?(?:\s+\S.*)?
        | (?P<uuid>{_UUID})
        | (?P<uid>[0-9]+(?:\.[0-9]+)+)
    )\s*""",
    re.VERBOSE,
)


class Manifest(NamedTuple):
    """The lines of a manifest, each with its number: UUIDs, UIDs, and lines that name no series."""

    uuids: list[tuple[int, str]]
    uids: list[tuple[int, str]]
    unreadable: list[tuple[int, str]]


class CohortText(NamedTuple):
    """A parsed text. `layout` is None if it has none; a blank text has neither SQL nor a manifest."""

    layout: str | None
    sql: str | None
    manifest: Manifest | None


def parse_text(data: bytes) -> CohortText:
    """Parse a cohort's text.

    Raises:
        QueryRefused: it is not UTF-8, or SQL with a NUL byte.
        QueryTooLong: it is more than `MAX_SQL` bytes of SQL, or more than `MAX_TEXT` of anything.
    """
    if len(data) > MAX_TEXT:
        raise QueryTooLong(f"a query has at most {MAX_TEXT:,} bytes")
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise QueryRefused(f"the query is not UTF-8 text (byte {error.start})") from error
    # Not splitlines(), which ends lines at form feeds and the like, too: editors do not.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    layout = _layout(lines)
    first = next((line for line in lines if not _COMMENT.match(line)), None)
    if first is None:
        return CohortText(layout, None, None)
    # The first words decide, so that a manifest with a wrong first line is not reported as wrong SQL.
    if not _SQL.match(first):
        manifest = _read_manifest(lines)
        if manifest.uuids or manifest.uids:
            return CohortText(layout, None, manifest)
    if len(data) > MAX_SQL:
        raise QueryTooLong(f"the query has {len(data):,} bytes of SQL; {MAX_SQL:,} are the most")
    if "\0" in text:
        # DuckDB would take it for a part of the name before it, where its message does not show it.
        number = text.count("\n", 0, text.index("\0")) + 1
        raise QueryRefused(f"line {number} of the query has a NUL byte")
    return CohortText(layout, text, None)


def _layout(lines: list[str]) -> str | None:
    for line in lines:
        match = _LAYOUT.fullmatch(line)
        if match:
            return match[1].strip()
        if not _COMMENT.match(line):
            break
    return None


def _read_manifest(lines: list[str]) -> Manifest:
    manifest = Manifest([], [], [])
    for number, line in enumerate(lines, start=1):
        if _COMMENT.match(line):
            continue
        match = _SERIES.fullmatch(line)
        uuid = match and (match["key"] or match["uuid"])
        if uuid:
            manifest.uuids.append((number, uuid.lower()))
        elif match:
            manifest.uids.append((number, match["uid"]))
        else:
            manifest.unreadable.append((number, line.strip()))
    return manifest
