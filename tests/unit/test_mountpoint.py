import os
import subprocess
from pathlib import Path

import pytest

from idcfs.errors import MountFailed
from idcfs.mount.mountpoint import absolute, mounts, parse_mountinfo, prepare, unmount


def line(path: str, kind: str = "fuse.idcfs", device: str = "0:61", optional: str = " shared:3") -> str:
    return f"412 29 {device} / {path} rw,nosuid,nodev{optional} - {kind} idc rw,user_id=0\n"


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/mnt/idc", "/mnt/idc"),
        (r"/mnt/my\040idc", "/mnt/my idc"),
        (r"/a\011b\012c\134d", "/a\tb\nc\\d"),
        (r"/a\1341", r"/a\1"),
        (r"/mnt/a\040-\040b", "/mnt/a - b"),
        ("/mnt/caf\u00e9", "/mnt/caf\u00e9"),
        ("/a\x0cb\x0bc\x1cd\u2028e\x85f", "/a\x0cb\x0bc\x1cd\u2028e\x85f"),
        ("/bad\udcff", "/bad\udcff"),
        ("/", "/"),
    ],
)
def test_the_path_of_a_mount_is_unescaped(written: str, path: str) -> None:
    text = line("/before", "ext4") + line(written) + line("/after", "tmpfs", "0:7")
    assert [tuple(mount) for mount in parse_mountinfo(text)] == [
        (Path("/before"), "ext4", "0:61"),
        (Path(path), "fuse.idcfs", "0:61"),
        (Path("/after"), "tmpfs", "0:7"),
    ]


@pytest.mark.parametrize("optional", ["", " shared:1", " master:1 propagate_from:2 unbindable"])
def test_there_may_be_any_number_of_optional_fields(optional: str) -> None:
    (mount,) = parse_mountinfo(line("/m", optional=optional))
    assert mount == (Path("/m"), "fuse.idcfs", "0:61")


def test_the_mounts_of_this_machine_are_parsed() -> None:
    assert Path("/proc") in {mount.path for mount in mounts()}


def test_a_mount_with_an_odd_name_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "a b\n\x0c\\040\t#\u2028"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root, and not in every container, can mount")
    try:
        assert folder in {mount.path for mount in mounts()}
        with pytest.raises(MountFailed, match="something else is mounted here"):
            prepare(folder, recover=False)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_mountpoint_is_made_if_its_parent_exists(tmp_path: Path) -> None:
    prepare(tmp_path / "idc", recover=False)
    assert (tmp_path / "idc").is_dir()
    prepare(tmp_path / "idc", recover=True)
    with pytest.raises(MountFailed, match="does not exist; create it: mkdir -p"):
        prepare(tmp_path / "missing" / "idc", recover=False)
    assert not (tmp_path / "missing").exists()


def test_a_folder_that_cannot_be_a_mountpoint_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MountFailed, match="is a file"):
        prepare(tmp_path / "file", recover=True)
    with pytest.raises(MountFailed, match="is not empty"):
        prepare(tmp_path, recover=True)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(MountFailed, match="idcfs is not mounted here"):
        unmount(tmp_path)


def test_the_last_component_of_a_path_is_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert absolute(Path("link/idc")) == tmp_path / "real" / "idc"
    assert absolute(Path("~/link")) == tmp_path / "real"
    assert absolute(Path("real/../idc/")) == tmp_path / "idc"
