"""Identifiers and descriptions that cannot be names: every series has one name, and each name is valid.

tests/unit/test_layout.py tests this of single values; here it is tested of whole trees, on a mount.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idcfs.layout import DEFAULT_TEMPLATE
from idcfs.printable import printable
from tests.faults.world import world
from tests.index_factory import Row, instances, make_index, make_uuid
from tests.mounting import Commands

VALUES = [
    None, "", " ", "_", ".", "..", "...", "/", "//", "a/b", "a%2Fb", "a%2fb", "%", "%%", "%2", "%2E", "100%", "\\",
    ".idc", ".IDC", "%2Eidc", ".hidden", "cohorts", "Cohorts", "COHORTS", "%63ohorts", "cohorts ", "cohorts_",
    ".query", "status.json", "\n", "a\nb", "a\rb", "\t", "\x01", "\x1b[31m", "\x7f", "\x80", "\x85", "%C2%85", "\x9b2J",
    "\u2028", "%E2%80%A8", "a\u2029b", "a\u200eb", "a\u200fb", "a\u202ab", "a\u2066b", "a\u2069b", "\u2028" * 40,
    "'", '"', "''; DROP TABLE index; --", "$(reboot)", "`", "*", "?", "-rf", "~", "name ", " name", "name.",
    "é", "e\u0301", "Å", "A\u030a", "\u212b", "ﬁ", "fi", "ß", "ss", "ẞ", "İ", "i\u0307", "\u0131", "i", "I",
    "\u0440\u0430\u0443\u0440\u0430l", "paypal", "a\u200bb", "a\u202eb", "ab", "\ufeffab", "\u00a0", "日本語",
    "😀" * 10, "\U0010ffff", "CON", "nul", "a:b", "a|b", "a\u2215b", "a\u2044b", "a\uff0fb",
    "x" * 200, "x" * 254, "x" * 255, "x" * 256, "x" * 300, "x" * 299 + "y", "é" * 150, "😀" * 75, "/" * 300,
    "." * 255, "%2F" * 100, "x" * 246 + "~00000000", "\x00", "a\x00b",
]  # fmt: skip

COLUMNS = ["collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"]
DESCRIPTIONS = ["StudyDescription", "SeriesDescription"]

MIXED = 300
"""The number of series whose identifiers are random values; some of them share a whole path."""

LAYOUTS = [DEFAULT_TEMPLATE, "%collection_id/%StudyDescription/%SeriesDescription", "%PatientID-%SeriesDescription"]


def rows() -> list[Row]:
    """Series with each value as each identifier, and with random values."""
    chance = random.Random(5)
    columns = [*COLUMNS, *DESCRIPTIONS]
    single = [{column: value} for column in columns for value in VALUES]
    few = [*VALUES[:12], "cohorts", ".idc"]
    mixed = [{column: chance.choice(few if number % 2 else VALUES) for column in columns} for number in range(MIXED)]
    return [
        Row(uuid=make_uuid("names", number), sizes=(number % 3 + 1,), columns=values)
        for number, values in enumerate([*single, *mixed])
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_series_has_one_name_and_every_name_is_valid(tmp_path: Path, layout: str) -> None:
    series = rows()
    wanted = {instances(row)[0].name: row for row in series}
    assert len(wanted) == len(series)
    found: dict[str, bytes] = {}
    with world(tmp_path, series, template=layout) as place, place.mounted():
        for path, name in files_below(os.fsencode(place.point)):
            assert name.decode() not in found, (path, found[name.decode()])
            found[name.decode()] = path
            content = instances(wanted[name.decode()])[0].content
            with open(os.path.join(path, name), "rb") as file:
                assert file.read() == content
    missing = [wanted[name] for name in wanted.keys() - found.keys()]
    assert missing == []
    assert len(found) == len(wanted)


def files_below(top: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The folder and name of each file; checks every name on the way."""
    folders = [top]
    while folders:
        folder = folders.pop()
        names = os.listdir(folder)
        assert len(set(names)) == len(names), folder
        for name in names:
            assert 0 < len(name) <= 255
            assert not name.startswith(b".")
            assert b"/" not in name
            assert name.decode() == printable(name.decode())
            path = os.path.join(folder, name)
            if not os.path.isdir(path):
                os.stat(path)
                yield folder, name
            elif path != os.path.join(top, b"cohorts"):
                folders.append(path)


def test_an_index_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    make_index(tmp_path / "index", [Row()])
    path = tmp_path / "index" / "idc_index.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("PatientID")
    # Arrow does not check the bytes here.
    broken = pa.array([b"patient\xff"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(at, "PatientID", broken), path)
    commands = Commands(tmp_path / "home")
    commands.home.mkdir()
    point = tmp_path / "idc"
    try:
        done = commands.idcfs("mount", "--index", tmp_path / "index", "--mirror", str(tmp_path), point)
    finally:
        subprocess.run(["fusermount3", "-uzq", point], check=False)
    assert done.returncode == 3
    assert "index" in done.stderr
    assert "Traceback" not in done.stderr
