"""Bytes read by real tools through a mount of a folder, and of an S3 server over TCP."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
import SimpleITK

from tests.mount.conftest import REAL_MIRROR, give_catalogue
from tests.mounting import Commands, checksums, mirror_series, status

REAL_CT = "58d74f94-f2a8-488b-8bd5-d7f91585f37f"
SAMPLE_CT = "527a5965-9a10-477b-863a-3597081538a4"

needs_real_data = pytest.mark.skipif(not REAL_MIRROR.is_dir(), reason="the real series are not on this machine")


@pytest.fixture(params=["folder", "s3"])
def mirror(request: pytest.FixtureRequest, folder_mirror: Path) -> str:
    return str(folder_mirror) if request.param == "folder" else str(request.getfixturevalue("s3_mirror"))


@pytest.fixture(params=[SAMPLE_CT, pytest.param(REAL_CT, marks=needs_real_data)], ids=["sample", "real"])
def ct(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def by_uuid(point: Path, uuid: str) -> Path:
    return point / ".idc" / "by-uuid" / uuid


def test_every_byte_of_every_series_is_right(
    someone: Commands, catalogue_folder: Path, folder_mirror: Path, mirror: str
) -> None:
    give_catalogue(someone, catalogue_folder)
    with someone.mounted(someone.home / "idc", "--mirror", mirror) as point:
        for uuid, original in mirror_series(folder_mirror).items():
            copy = someone.home / uuid
            assert someone.run("cp", "-r", by_uuid(point, uuid), copy).stderr == ""
            assert subprocess.run(["diff", "-r", copy, original], check=False).returncode == 0


@needs_real_data
def test_the_real_series_have_their_published_checksums(commands: Commands, s3_mirror: str) -> None:
    lines = (REAL_MIRROR.parent / "SHA256SUMS").read_text().splitlines()
    wanted = {line[66:]: line[:64] for line in lines}
    with commands.mounted(commands.home / "idc", "--mirror", s3_mirror) as point:
        for uuid in mirror_series(REAL_MIRROR):
            for name, digest in checksums(by_uuid(point, uuid)).items():
                assert digest == wanted.pop(f"mirror/idc-open-data/{uuid}/{name}")
    assert not wanted


def test_dcm2niix_makes_the_same_from_a_mount(commands: Commands, mirror: str, folder_mirror: Path, ct: str) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", mirror) as point:
        outputs: list[Mapping[str, str]] = []
        for place in (by_uuid(point, ct), mirror_series(folder_mirror)[ct]):
            output = commands.home / f"nifti-{len(outputs)}"
            output.mkdir()
            done = commands.run("dcm2niix", "-o", output, "-f", "volume", place)
            assert done.returncode == 0, done.stdout
            outputs.append(checksums(output))
        assert outputs[0] == outputs[1]
        assert any(name.endswith(".nii") for name in outputs[0])


def test_simpleitk_reads_the_same_volume(commands: Commands, mirror: str, folder_mirror: Path, ct: str) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", mirror) as point:
        volumes = []
        for place in (by_uuid(point, ct), mirror_series(folder_mirror)[ct]):
            reader = SimpleITK.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(place)))
            volume = reader.Execute()
            volumes.append((volume.GetSize(), volume.GetSpacing(), volume.GetOrigin(), SimpleITK.Hash(volume)))
        assert volumes[0] == volumes[1]
        assert volumes[0][0][2] > 1


def test_a_scan_finds_only_valid_dicom_files(
    commands: Commands, mirror: str, folder_mirror: Path, index_of_the_mirror: Path
) -> None:
    """3D Slicer's indexer walks all files, also hidden ones, and reads each up to its large elements."""
    flags = ("--index", index_of_the_mirror, "--mirror", mirror)
    with commands.mounted(commands.home / "idc", *flags) as point:
        scan = commands.run("dcmdump", "--scan-directories", "--recurse", "--max-read-length", "4", point)
        assert (scan.returncode, scan.stderr) == (0, "")
        originals = {file.name for series in mirror_series(folder_mirror).values() for file in series.iterdir()}
        assert scan.stdout.count("# Dicom-File-Format") == len(originals)
        found = [f"{folder}/{name}" for folder, _, names in os.walk(point) for name in names]
        assert {Path(file).name for file in found} == originals
        for start in range(0, len(found), 50):
            test = commands.run("dcmftest", *found[start : start + 50])
            assert all(line.startswith("yes:") for line in test.stdout.splitlines()), test.stdout


def test_pydicom_reads_headers(commands: Commands, mirror: str, folder_mirror: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", mirror) as point:
        for uuid, original in mirror_series(folder_mirror).items():
            for file in original.iterdir():
                here = pydicom.dcmread(by_uuid(point, uuid) / file.name, stop_before_pixels=True)
                assert here.to_json() == pydicom.dcmread(file, stop_before_pixels=True).to_json()


def test_bytes_that_were_read_are_there_offline_after_a_remount(commands: Commands, s3_mirror: str) -> None:
    folder = commands.home / "idc"
    with commands.mounted(folder, "--mirror", s3_mirror) as point:
        first = checksums(by_uuid(point, SAMPLE_CT))
        assert status(point)["bytes_fetched"] > 0
    with commands.mounted(folder, "--mirror", s3_mirror) as point:
        assert checksums(by_uuid(point, SAMPLE_CT)) == first
        facts = status(point)
        assert (facts["bytes_fetched"], facts["listings_fetched"], facts["hit_rate"]) == (0, 0, 1)


def test_two_mounts_share_one_cache(commands: Commands, s3_mirror: str) -> None:
    with (
        commands.mounted(commands.home / "one", "--mirror", s3_mirror) as one,
        commands.mounted(commands.home / "two", "--mirror", s3_mirror) as two,
    ):
        first = checksums(by_uuid(one, SAMPLE_CT))
        assert checksums(by_uuid(two, SAMPLE_CT)) == first
        assert status(two)["bytes_fetched"] == 0


def test_the_cache_keeps_its_limit(commands: Commands, s3_mirror: str, folder_mirror: Path) -> None:
    if not REAL_MIRROR.is_dir():
        pytest.skip("the sample is smaller than the smallest cache")
    with commands.mounted(commands.home / "idc", "--mirror", s3_mirror, "--cache-size", "64MiB") as point:
        for uuid in mirror_series(folder_mirror):
            checksums(by_uuid(point, uuid))
        used = 0
        for path in (commands.home / ".cache/idcfs/objects").rglob("*.val"):
            # The last writes may still evict other entries.
            with contextlib.suppress(FileNotFoundError):
                used += path.stat().st_blocks * 512
        assert used < 70 << 20
        assert checksums(by_uuid(point, REAL_CT)) == checksums(mirror_series(REAL_MIRROR)[REAL_CT])


def test_mirrors_never_share_bytes(commands: Commands, world_readable: Path, folder_mirror: Path) -> None:
    """The other mirror has other bytes under the same names."""
    other = commands.home / "forged"
    original = mirror_series(folder_mirror)[SAMPLE_CT]
    forged = other / original.parent.name / SAMPLE_CT
    forged.mkdir(parents=True)
    for file in original.iterdir():
        (forged / file.name).write_bytes(file.read_bytes()[::-1])
    for mirror, wanted in ((folder_mirror, original), (other, forged), (folder_mirror, original)):
        with commands.mounted(commands.home / "idc", "--mirror", mirror) as point:
            assert checksums(by_uuid(point, SAMPLE_CT)) == checksums(wanted)


def test_real_bytes_in_place_of_the_sample_are_read(commands: Commands, folder_mirror: Path) -> None:
    place = commands.home / "place"
    original = mirror_series(folder_mirror)[SAMPLE_CT]
    assert commands.idcfs("demo-mirror", place).returncode == 0
    with commands.mounted(commands.home / "idc", "--mirror", place) as point:
        assert checksums(by_uuid(point, SAMPLE_CT)) == checksums(original)
    shutil.rmtree(place)
    real = place / original.parent.name / SAMPLE_CT
    real.mkdir(parents=True)
    for file in original.iterdir():
        (real / file.name).write_bytes(file.read_bytes()[::-1])
    with commands.mounted(commands.home / "idc", "--mirror", place) as point:
        assert checksums(by_uuid(point, SAMPLE_CT)) == checksums(real)


def test_many_readers_at_random_positions(commands: Commands, s3_mirror: str, folder_mirror: Path) -> None:
    largest = max((file for s in mirror_series(folder_mirror).values() for file in s.iterdir()), key=os.path.getsize)
    data = largest.read_bytes()

    def read(number: int) -> bool:
        start = number * 7919 % len(data)
        with open(by_uuid(commands.home / "idc", largest.parent.name) / largest.name, "rb") as file:
            file.seek(start)
            return file.read(10_000) == data[start : start + 10_000]

    with commands.mounted(commands.home / "idc", "--mirror", s3_mirror), ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, range(500)))


def test_a_full_disk_makes_reads_slower_but_not_wrong(commands: Commands, folder_mirror: Path, s3_mirror: str) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a small disk")
    small = commands.home / "small"
    small.mkdir()
    assert commands.run("mount", "-t", "tmpfs", "-o", "size=300m,mode=700", "none", small).returncode == 0
    original = mirror_series(folder_mirror)[SAMPLE_CT]
    try:
        flags = ("--mirror", s3_mirror, "--cache-dir", small)
        with commands.mounted(commands.home / "idc", *flags) as point:
            assert checksums(by_uuid(point, SAMPLE_CT)) == checksums(original)
            failure = status(point)["cache"]["objects"]["failure"]
            assert "free" in failure
            assert "free" in commands.idcfs("status", point).stdout
    finally:
        commands.run("umount", "-l", small)
