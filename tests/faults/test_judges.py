"""Other programs check the mount: they compare it with what they wrote, or with the source folder.

Of stress-ng's stressors only `fstat` can examine a given tree; the others make their own files first.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.faults.tree import series
from tests.faults.world import World, world
from tests.index_factory import Row

PATTERN_BYTES = 24 << 20
"""More than a file that is fetched whole, and more than a window."""

VERIFIED_BYTES = 4096
"""Bytes for each of fio's checksums."""

STRESS_SECONDS = 1

READS = {
    "from front to back": ["--rw=read", "--bs=64k"],
    "at random": ["--rw=randread", "--bs=4k"],
    "by several at once": ["--rw=randread", "--bs=64k", "--numjobs=4", "--thread"],
    "through a map": ["--rw=randread", "--bs=16k", "--ioengine=mmap"],
    "past the kernel's pages": ["--rw=randread", "--bs=64k", "--direct=1"],
    "many at a time": ["--rw=randread", "--bs=32k", "--ioengine=libaio", "--iodepth=32", "--direct=1"],
}


def run(*command: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool that scripts/setup installs."""
    tool = str(command[0])
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed; scripts/setup installs it")
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A mount and a folder with the same tree; the series `fio` has a file that fio wrote, and a damaged copy."""
    folder = tmp_path_factory.mktemp("judges")
    rows = [series(f"c{number}").row for number in range(6)]
    with world(folder, [*rows, Row(collection="fio", sizes=(PATTERN_BYTES, PATTERN_BYTES))]) as found:
        written = folder / "written"
        done = run("fio", *verified(written), "--rw=write", "--bs=64k", "--do_verify=0", f"--size={PATTERN_BYTES}")
        assert done.returncode == 0, done.stderr
        right = written.read_bytes()
        wrong = right[: PATTERN_BYTES // 2] + bytes([right[PATTERN_BYTES // 2] ^ 1]) + right[PATTERN_BYTES // 2 + 1 :]
        held, files = cast(dict[str, bytes], found.server.objects), cast(dict[Path, bytes], found.files)
        for path, content in zip(patterns(found), (right, wrong), strict=True):
            (key,) = [key for key in held if key.endswith(path.name)]
            held[key] = files[path] = content
        for path, content in found.files.items():
            copy = folder / "source" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        with found.mounted():
            yield found


def verified(file: Path) -> list[str]:
    """fio's options for a file with checksums that it can verify."""
    return [
        "--name=judge", f"--filename={file}", "--verify=crc32c", f"--verify_interval={VERIFIED_BYTES}",
        "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=1", "--ioengine=psync", "--output-format=terse",
    ]  # fmt: skip


def patterns(place: World) -> list[Path]:
    """The two files for fio: the right one and the one with a flipped bit."""
    return sorted(path for path in place.files if path.parts[0] == "fio")


@pytest.mark.parametrize("how", READS)
def test_fio_verifies_its_checksums(place: World, how: str) -> None:
    right, wrong = (place.point / path for path in patterns(place))
    place.drop_pages()
    options = ["--readonly", "--allow_file_create=0", f"--size={PATTERN_BYTES}", *READS[how]]
    done = run("fio", *verified(right), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run("fio", *verified(wrong), *options).returncode != 0, "fio does not look"


def test_stress_ng_examines_files(place: World) -> None:
    for folder in [place.point / path for path in list(place.folders)[:4]]:
        done = run(
            "stress-ng", "--fstat", "4", "--fstat-dir", folder, "--timeout", str(STRESS_SECONDS), "--verify",
            folder=place.commands.home,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "passed: 4" in done.stderr or "successful run" in done.stdout + done.stderr


def test_find_sees_the_same_tree(place: World) -> None:
    def found(top: Path) -> list[str]:
        done = run("find", top, "-path", top / "cohorts", "-prune", "-o", "-type", "f", "-printf", "%P %s\\n")
        assert done.stderr == ""
        return sorted(done.stdout.splitlines())

    assert found(place.point) == found(place.point.parent / "source")


def test_tar_packs_the_same_bytes(place: World, tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    assert run("tar", "-C", place.point, "--exclude=./cohorts", "-cf", packed, ".").returncode == 0
    # Folders have other modes and times than those of the source, which this test ignores.
    done = run("tar", "-C", place.point.parent / "source", "--compare", "-f", packed)
    assert [
        line for line in done.stdout.splitlines() if "Mode differs" not in line and "time differs" not in line
    ] == []
    names = {Path(name) for name in run("tar", "-tf", packed).stdout.splitlines() if not name.endswith("/")}
    assert names == set(place.files)


def test_rsync_finds_no_difference(place: World) -> None:
    source = place.point.parent / "source"
    same = ["rsync", "--checksum", "--recursive", "--dry-run", "--delete", "--itemize-changes", "--exclude=/cohorts"]
    done = run(*same, f"{place.point}/", f"{source}/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    other = next(iter(place.files))
    with changed(source / other):
        assert str(other) in run(*same, f"{place.point}/", f"{source}/").stdout


@contextlib.contextmanager
def changed(file: Path) -> Iterator[None]:
    """Change the last byte of a file, which a program must then detect."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, (0, 0))
    try:
        yield
    finally:
        file.write_bytes(content)
