"""Landlock, in processes of their own, because it cannot be undone."""

import subprocess
import sys
from pathlib import Path

import pytest

TRIES = """
import os, sys, threading
from pathlib import Path
from idcfs.catalog.landlock import confine_writes

inside, outside = map(Path, sys.argv[1:])
if not confine_writes(inside):
    sys.exit(77)
tries = {
    "write": lambda: (outside / "file").open("r+b"),
    "truncate": lambda: os.truncate(outside / "file", 0),
    "replace": lambda: (outside / "file").open("wb"),
    "create": lambda: (outside / "new").open("xb"),
    "remove": lambda: (outside / "file").unlink(),
    "rename": lambda: (outside / "file").rename(inside / "file"),
    "link": lambda: (outside / "link").symlink_to(inside),
    "folder": lambda: (outside / "folder").mkdir(),
    "read": lambda: (outside / "file").read_bytes(),
    "inside": lambda: (inside / "new").write_bytes(b"new"),
    "inside truncated": lambda: (inside / "new").write_bytes(b""),
    "inside replaced": lambda: (inside / "new").rename(inside / "newer"),
}

def attempt():
    for name, call in tries.items():
        try:
            call()
            print(name, "done")
        except OSError as error:
            print(name, "refused")

# A thread that starts now is confined too.
thread = threading.Thread(target=attempt)
thread.start()
thread.join()
"""


def test_only_the_folder_can_be_written(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").write_bytes(b"kept")
    command = [sys.executable, "-c", TRIES, str(inside), str(outside)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel has no Landlock")
    assert done.returncode == 0, done.stderr
    results = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    works = {"read", "inside", "inside truncated", "inside replaced"}
    assert {name for name, result in results.items() if result == "done"} == works
    assert len(results) == 12
    assert (outside / "file").read_bytes() == b"kept"
