"""The folder of cohorts: mounts and people share it, and no file is ever seen half written."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from idcfs.cohorts import folder as cohort_folder
from idcfs.cohorts.folder import MAX_NAME_BYTES, CohortTexts, check_name
from idcfs.errors import (
    AlreadyThere,
    CohortsUnusable,
    IdcfsError,
    NameRefused,
    NameTooLong,
    NoSpace,
    NotThereNow,
    QueryTooLong,
)
from tests.mounting import ORDINARY_USER, needs_another_user

Change = Callable[[CohortTexts], object]

CHANGES: dict[str, Change] = {
    "create": lambda folder: folder.create("new"),
    "write": lambda folder: folder.write("old", b"x"),
    "append": lambda folder: folder.append("old", b"x"),
    "rename": lambda folder: folder.rename("old", "other"),
    "delete": lambda folder: folder.delete("old"),
    "keep": lambda folder: folder.keep_last_good("old", b"x"),
}


@pytest.fixture
def folder(tmp_path: Path) -> CohortTexts:
    return CohortTexts(tmp_path / "data" / "cohorts")


def files(folder: CohortTexts) -> dict[str, bytes]:
    """Return the contents of all files in the folder but the lock."""
    found = {str(path.relative_to(folder.path)): path for path in folder.path.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != ".lock"}


def test_the_folder_is_made_with_the_first_cohort(folder: CohortTexts) -> None:
    assert folder.names() == {}
    assert folder.read_last_good("a") is None
    with pytest.raises(NotThereNow):
        folder.read("a")
    with pytest.raises(NotThereNow):
        folder.stamp("a")
    assert not folder.path.parent.exists()
    folder.create("a")
    assert files(folder) == {"a.sql": b""}


def test_a_text_is_read_as_it_was_written_and_every_write_changes_its_stamp(folder: CohortTexts) -> None:
    stamps = [folder.create("a")]
    for text in (b"one", b"two", b"\0\xff\r\n"):
        stamps.append(folder.write("a", text))
        assert folder.read("a") == (text, stamps[-1])
        assert folder.stamp("a") == stamps[-1] == folder.names()["a"]
    assert len(set(stamps)) == 4
    assert files(folder) == {"a.sql": b"\0\xff\r\n"}


def test_a_cohort_that_exists_is_not_made_again(folder: CohortTexts) -> None:
    folder.create("a")
    folder.write("a", b"text")
    with pytest.raises(AlreadyThere):
        folder.create("a")
    assert files(folder) == {"a.sql": b"text"}


def test_the_number_of_cohorts_is_bounded(folder: CohortTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_folder, "MAX_COHORTS", 2)
    folder.create("a")
    folder.create("b")
    with pytest.raises(NoSpace, match="there are 2 cohorts"):
        folder.create("c")
    folder.delete("a")
    folder.create("c")


def test_a_rename_moves_both_texts_and_never_replaces_another_cohort(folder: CohortTexts) -> None:
    for name in "abc":
        folder.write(name, name.encode())
        folder.keep_last_good(name, name.encode() * 2)
    with pytest.raises(AlreadyThere):
        folder.rename("a", "b")
    with pytest.raises(NotThereNow):
        folder.rename("x", "y")
    assert [folder.read_last_good(name) for name in "abc"] == [b"aa", b"bb", b"cc"]
    folder.delete("b")
    folder.rename("a", "b")
    assert files(folder) == {
        "b.sql": b"a", "c.sql": b"c", ".last-good/b.sql": b"aa", ".last-good/c.sql": b"cc",
    }  # fmt: skip


def test_the_last_text_that_worked_is_kept_until_it_is_not_needed(folder: CohortTexts) -> None:
    folder.write("a", b"bad")
    folder.keep_last_good("a", None)
    assert not (folder.path / ".last-good").exists()
    folder.keep_last_good("a", b"good")
    folder.keep_last_good("a", b"better")
    assert folder.read_last_good("a") == b"better"
    folder.keep_last_good("a", None)
    assert folder.read_last_good("a") is None
    folder.keep_last_good("a", b"good")
    folder.delete("a")
    assert files(folder) == {}


@pytest.mark.parametrize("make", [lambda folder: folder.create("a"), lambda folder: folder.rename("b", "a")])
def test_a_new_cohort_has_no_text_of_one_that_was_removed_by_hand(folder: CohortTexts, make: Change) -> None:
    folder.write("a", b"bad")
    folder.keep_last_good("a", b"good")
    (folder.path / "a.sql").unlink()
    folder.write("b", b"")
    make(folder)
    assert folder.read_last_good("a") is None


# Other things in the folder.


def test_other_files_are_no_cohorts_and_stay(folder: CohortTexts) -> None:
    folder.create("mine")
    others: list[str | bytes] = [
        ".hidden.sql", ".sql", "README.md", "a.SQL", "a.sql~", "a.sql.swp", "a\nb.sql", b"\xff.sql", "x" * 252 + "sql",
    ]  # fmt: skip
    for name in others:
        Path(os.fsdecode(os.path.join(os.fsencode(folder.path), os.fsencode(name)))).write_bytes(b"x")
    (folder.path / "gone.sql").symlink_to("nowhere")
    (folder.path / "self.sql").symlink_to("self.sql")
    assert list(folder.names()) == ["mine"]
    for name in ("gone", "self"):
        with pytest.raises((NotThereNow, CohortsUnusable)):
            folder.read(name)


def test_a_file_added_by_hand_is_a_cohort_and_so_is_a_link_to_one(folder: CohortTexts, tmp_path: Path) -> None:
    folder.create("b")
    (folder.path / "a.b é.sql").write_bytes(b"by hand")
    (tmp_path / "elsewhere").write_bytes(b"linked")
    (folder.path / "c.sql").symlink_to(tmp_path / "elsewhere")
    assert list(folder.names()) == ["a.b é", "b", "c"]
    assert folder.read("a.b é")[0] == b"by hand"
    assert folder.read("c") == (b"linked", folder.stamp("c"))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    # The name of a socket has 108 bytes at most.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(before)


def make_device_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(100)
@pytest.mark.parametrize("make", [Path.mkdir, make_pipe, make_socket, make_device_link])
def test_anything_but_a_file_is_no_cohort_and_blocks_nobody(folder: CohortTexts, make: Callable[[Path], None]) -> None:
    folder.create("mine")
    make(folder.path / "other.sql")
    assert list(folder.names()) == ["mine"]
    with pytest.raises(NotThereNow):
        folder.stamp("other")
    with pytest.raises((NotThereNow, CohortsUnusable)):
        folder.read("other")
    with pytest.raises((NotThereNow, CohortsUnusable)):
        folder.append("other", b"x")
    with pytest.raises(AlreadyThere):
        folder.create("other")


def test_of_a_file_that_is_too_long_one_byte_beyond_the_limit_is_read(
    folder: CohortTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort_folder, "MAX_TEXT", 1000)
    folder.create("a")
    (folder.path / "a.sql").write_bytes(b"x" * 5000)
    assert folder.read("a")[0] == b"x" * 1001
    with pytest.raises(QueryTooLong):
        folder.append("a", b"y")
    assert files(folder) == {"a.sql": b"x" * 5000}
    folder.write("a", b"x" * 999)
    assert folder.append("a", b"y")[0] == b"x" * 999 + b"y"


# Names.


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=8) | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogateescape")))
@example(b"x" * MAX_NAME_BYTES)
@example(b"x" * (MAX_NAME_BYTES + 1))
@example("é".encode() * 125 + b"x")
@example("é".encode() * 126)
@example(b".")
@example(b"..")
@example(b"../x")
@example(b".query")
@example(b"a.sql")
@example(b" ")
@example(b"-rf")
@example(b"a\x7f")
@example("\u202e".encode())
def test_a_name_is_refused_or_is_a_file_of_that_name(name: bytes) -> None:
    try:
        text = check_name(name)
    except NameTooLong:
        assert len(name) > 251
        return
    except NameRefused:
        assert (
            not name
            or name.startswith(b".")
            or any(byte < 32 or byte in b"/\x7f" for byte in name)
            or name.decode(errors="surrogateescape").encode(errors="replace") != name
        )
        return
    assert text.encode() == name
    with tempfile.TemporaryDirectory() as path:
        folder = CohortTexts(Path(path))
        folder.create(text)
        folder.write(text, b"x")
        folder.keep_last_good(text, b"y")
        assert list(folder.names()) == [text]
        assert sorted(os.listdir(os.fsencode(path))) == sorted([b".last-good", b".lock", name + b".sql"])
        folder.delete(text)
        assert folder.names() == {}


@pytest.mark.parametrize("name", [b"", b".", b"..", b".hidden", b"a/b", b"a\0b", b"a\nb", b"\xff", b"\xed\xa0\x80"])
def test_names_that_no_cohort_can_have_are_refused(name: bytes) -> None:
    with pytest.raises(NameRefused):
        check_name(name)


# Several writers at once.

APPEND = """
import sys
from pathlib import Path
from idcfs.cohorts.folder import CohortTexts
for number in range(int(sys.argv[3])):
    CohortTexts(Path(sys.argv[1])).append("shared", f"{sys.argv[2]} {number}\\n".encode())
"""


def test_two_mounts_that_append_at_once_lose_nothing(folder: CohortTexts) -> None:
    folder.create("shared")
    processes = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(folder.path), name, "40"]) for name in ("one", "two")
    ]

    def append(name: str) -> None:
        other = CohortTexts(folder.path)
        for number in range(40):
            other.append("shared", f"{name} {number}\n".encode())

    threads = [threading.Thread(target=append, args=[name]) for name in ("three", "four")]
    for thread in threads:
        thread.start()
    # A reader sees whole lines only, and never fewer than before.
    seen = b""
    while any(process.poll() is None for process in processes) or any(thread.is_alive() for thread in threads):
        text = folder.read("shared")[0]
        assert text.startswith(seen)
        assert not text or text.endswith(b"\n")
        seen = text
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    lines = folder.read("shared")[0].decode().splitlines()
    for name in ("one", "two", "three", "four"):
        assert [line for line in lines if line.startswith(f"{name} ")] == [f"{name} {n}" for n in range(40)]
    assert len(lines) == 160
    assert list(files(folder)) == ["shared.sql"]


def test_of_several_threads_that_make_one_cohort_at_once_one_succeeds(folder: CohortTexts) -> None:
    made: list[str] = []
    ready = threading.Barrier(8)

    def make(name: str) -> None:
        mine = CohortTexts(folder.path)
        ready.wait()
        for number in range(10):
            try:
                if name in "abcd":
                    mine.create(f"new{number}")
                else:
                    mine.write(f"{name}{number}", name.encode())
                    mine.rename(f"{name}{number}", f"new{number}")
            except AlreadyThere:
                continue
            made.append(f"new{number}")

    threads = [threading.Thread(target=make, args=[name]) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [f"new{number}" for number in range(10)]
    # A cohort that was not renamed has its old name.
    assert len(folder.names()) == 50 - sum(folder.read(f"new{number}")[0] != b"" for number in range(10))


# A disk that fails.


def file_in_its_place(path: Path) -> Path:
    path.write_bytes(b"x")
    return path


def file_above_it(path: Path) -> Path:
    path.write_bytes(b"x")
    return path / "cohorts"


@pytest.mark.parametrize("place", [file_in_its_place, file_above_it])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path, place: Callable[[Path], Path], change: str) -> None:
    folder = CohortTexts(place(tmp_path / "place"))
    with pytest.raises(CohortsUnusable, match=r"place.*Not a directory; choose another with --cohort-dir"):
        CHANGES[change](folder)
    for ask in (folder.names, lambda: folder.read("a"), lambda: folder.stamp("a"), lambda: folder.read_last_good("a")):
        with pytest.raises(CohortsUnusable, match="Not a directory"):
            ask()
    assert (tmp_path / "place").read_bytes() == b"x"


def test_a_file_where_the_folder_of_last_texts_should_be_affects_nothing_else(folder: CohortTexts) -> None:
    folder.write("old", b"text")
    (folder.path / ".last-good").touch()
    with pytest.raises(CohortsUnusable, match="Not a directory"):
        folder.keep_last_good("old", b"good")
    folder.keep_last_good("old", None)
    folder.rename("old", "new")
    folder.create("old")
    folder.delete("new")
    assert files(folder) == {"old.sql": b"", ".last-good": b""}


READ_ONLY = """
import sys
from pathlib import Path
from idcfs.errors import CohortsUnusable
from tests.unit.test_cohort_folder import CHANGES, CohortTexts
folder = CohortTexts(Path(sys.argv[1]))
assert list(folder.names()) == ["old"]
assert folder.read("old")[0] == b"text"
assert folder.read_last_good("old") == b"good"
for name, change in CHANGES.items():
    try:
        change(folder)
    except CohortsUnusable as error:
        assert "Permission denied; choose another with --cohort-dir" in str(error), error
    else:
        sys.exit(f"{name} went through")
"""


@needs_another_user
def test_a_read_only_folder_can_be_read() -> None:
    with tempfile.TemporaryDirectory(prefix="idcfs-test-") as path:
        Path(path).chmod(0o755)
        folder = CohortTexts(Path(path) / "cohorts")
        folder.write("old", b"text")
        folder.keep_last_good("old", b"good")
        before = files(folder)
        command = [sys.executable, "-c", READ_ONLY, str(folder.path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command,
            user=ORDINARY_USER, group=ORDINARY_USER, extra_groups=[], env=environment, capture_output=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert files(folder) == before


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[CohortTexts]:
    """A folder on a file system of 256 kB."""
    path = tmp_path / "tiny"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root, and not in every container, can mount a small disk")
    yield CohortTexts(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_leaves_the_text_unchanged(tiny_disk: CohortTexts) -> None:
    tiny_disk.write("a", b"x" * 100_000)
    for change in (
        lambda: tiny_disk.write("a", b"y" * 200_000),
        lambda: tiny_disk.append("a", b"y" * 100_000),
        lambda: tiny_disk.keep_last_good("a", b"y" * 200_000),
    ):
        with pytest.raises(NoSpace, match="No space left on device"):
            change()
        assert files(tiny_disk) == {"a.sql": b"x" * 100_000}
    tiny_disk.write("a", b"y" * 100_000)


def test_partial_files_of_killed_writers_are_removed_unless_somebody_writes(
    folder: CohortTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort_folder, "LOCK_SECONDS", 0)
    folder.remove_leftovers()
    assert not folder.path.exists()
    folder.write("a", b"x")
    folder.keep_last_good("a", b"y")
    kept = {**files(folder), ".mine.partial": b""}
    (folder.path / ".mine.partial").touch()
    left = [parent / f".{16 * 'a'}.partial" for parent in (folder.path, folder.path / ".last-good")]
    for file in left:
        file.write_bytes(b"half of")
    with folder._locked():
        CohortTexts(folder.path).remove_leftovers()
        assert all(file.exists() for file in left)
    folder.remove_leftovers()
    assert files(folder) == kept


def test_leftovers_in_an_unreadable_folder_are_ignored(tmp_path: Path) -> None:
    # The name is too long for any file system.
    CohortTexts(tmp_path / ("x" * 300)).remove_leftovers()


def test_a_disk_without_locks_is_reported(folder: CohortTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(CohortsUnusable, match="No locks available"):
        folder.create("a")


STEPS: dict[str, Callable[[CohortTexts, str, str, bytes], object]] = {
    "c": lambda folder, name, other, text: folder.create(name),
    "w": lambda folder, name, other, text: folder.write(name, text),
    "a": lambda folder, name, other, text: folder.append(name, text),
    "k": lambda folder, name, other, text: folder.keep_last_good(name, text),
    "K": lambda folder, name, other, text: folder.keep_last_good(name, None),
    "r": lambda folder, name, other, text: folder.rename(name, other),
    "d": lambda folder, name, other, text: folder.delete(name),
}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from("ab"), st.sampled_from("ab"), st.binary(max_size=3)),
        max_size=20,
    )
)
def test_any_sequence_of_operations_leaves_the_texts_of_a_model(steps: list[tuple[str, str, str, bytes]]) -> None:
    model: dict[str, bytes] = {}
    good: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as path:
        for step, name, other, text in steps:
            folder = CohortTexts(Path(path))
            error: type[IdcfsError] | None = None
            match step:
                case "c" if name in model:
                    error = AlreadyThere
                case "a" | "r" | "d" if name not in model:
                    error = NotThereNow
                case "r" if other in model:
                    error = AlreadyThere
            change = partial(STEPS[step], folder, name, other, text)
            if error is not None:
                with pytest.raises(error):
                    change()
                continue
            change()
            match step:
                case "c":
                    model[name] = b""
                    good.pop(name, None)
                case "w":
                    model[name] = text
                case "a":
                    model[name] += text
                case "k":
                    good[name] = text
                case "K":
                    good.pop(name, None)
                case "r":
                    model[other] = model.pop(name)
                    good.pop(other, None)
                    good |= {other: good.pop(name)} if name in good else {}
                case "d":
                    del model[name]
                    good.pop(name, None)
            assert {name: folder.read(name)[0] for name in folder.names()} == model
            assert {name: folder.read_last_good(name) for name in "ab"} == {name: good.get(name) for name in "ab"}
