"""The demo's mirror: valid DICOM objects of true series, equal in each run; other folders are unchanged."""

import hashlib
import os
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import idc_index_data
import pyarrow
import pyarrow.parquet
import pydicom
import pytest
import SimpleITK

from idcfs.demo import DemoSummary, write_demo_mirror
from idcfs.demo.selection import DEMO_SERIES, SOURCES
from idcfs.errors import IndexUnusable, UsageError

itk: Any = SimpleITK  # its functions carry no types

CT_SERIES = "527a5965-9a10-477b-863a-3597081538a4"
SLICES = {"CT", "MR", "PT"}
NOTE = "synthetic demo data, not a patient"


@dataclass(frozen=True)
class Demo:
    folder: Path
    index: Path
    summary: DemoSummary
    rows: dict[str, dict[str, Any]]
    objects: dict[Path, pydicom.FileDataset]

    def series(self, uuid: str) -> list[pydicom.FileDataset]:
        return [dataset for path, dataset in self.objects.items() if path.parent.name == uuid]

    def of_modality(self, *modalities: str) -> list[pydicom.FileDataset]:
        return [dataset for dataset in self.objects.values() if dataset.Modality in modalities]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's rows of the installed index, because reading all of it again and again is slow."""
    table = pyarrow.parquet.read_table(
        idc_index_data.IDC_INDEX_PARQUET_FILEPATH, filters=[("crdc_series_uuid", "in", list(DEMO_SERIES))]
    )
    path = tmp_path_factory.mktemp("index") / "idc_index.parquet"
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, index: Path) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "mirror"
    summary = write_demo_mirror(folder, index)
    rows = {row["crdc_series_uuid"]: row for row in pyarrow.parquet.read_table(index).to_pylist()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objects = {path: pydicom.dcmread(path) for path in sorted(folder.glob("*/*/*.dcm"))}
        for dataset in objects.values():
            str(dataset)  # reads and validates every element, nested ones too
    return Demo(folder, index, summary, rows, objects)


def fingerprints(folder: Path) -> dict[str, tuple[str, float]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime)
        for path in folder.rglob("*")
        if path.is_file()
    }


def elements(dataset: pydicom.Dataset, keyword: str) -> Iterator[Any]:
    return (element.value for element in dataset.iterall() if element.keyword == keyword)


def write_rows(index: Path, to: Path, uuids: set[str]) -> Path:
    table = pyarrow.parquet.read_table(index)
    keep = [uuid in uuids for uuid in table["crdc_series_uuid"].to_pylist()]
    pyarrow.parquet.write_table(table.filter(pyarrow.array(keep, pyarrow.bool_())), to)
    return to


def test_the_installed_index_has_every_series(demo: Demo) -> None:
    assert demo.summary.skipped == ()
    assert demo.summary.series == len(DEMO_SERIES) == len(set(DEMO_SERIES))


def test_the_series_cover_modalities_collections_buckets_and_stay_small(demo: Demo) -> None:
    rows = demo.rows.values()
    assert {row["Modality"] for row in rows} >= {"CT", "MR", "PT", "SEG", "SR", "SM", "RTSTRUCT"}
    assert {row["aws_bucket"] for row in rows} == {"idc-open-data", "idc-open-data-two", "idc-open-data-cr"}
    assert len({row["collection_id"] for row in rows}) >= 5
    assert all(row["license_short_name"].startswith("CC BY") for row in rows)
    assert all(row["instanceCount"] <= 60 for row in rows)
    assert demo.summary.bytes < 40_000_000


def test_the_layout_is_that_of_the_buckets_and_the_numbers_are_those_of_the_index(demo: Demo) -> None:
    counted = Counter((path.parent.parent.name, path.parent.name) for path in demo.objects)
    assert counted == {(row["aws_bucket"], uuid): row["instanceCount"] for uuid, row in demo.rows.items()}
    assert demo.summary.instances == len(demo.objects)
    assert demo.summary.bytes == sum(path.stat().st_size for path in demo.objects)
    files = {path for path in demo.folder.rglob("*") if path.is_file()}
    assert files == {*demo.objects, demo.folder / "README.txt"}


def test_identifiers_are_those_of_the_index(demo: Demo) -> None:
    keywords = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SOPClassUID")
    for path, dataset in demo.objects.items():
        row = demo.rows[path.parent.name]
        assert {keyword: dataset[keyword].value for keyword in keywords} == {
            keyword: row[keyword] for keyword in keywords
        }
        assert dataset.StudyDate == row["StudyDate"].replace("-", "")
        assert dataset.get("SeriesDate", "") == (row["SeriesDate"] or "").replace("-", "")
        assert str(dataset.get("SeriesNumber") or "") == (row["SeriesNumber"] or "")
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_sop_instance_uids_are_unique_and_valid(demo: Demo) -> None:
    uids = {dataset.SOPInstanceUID for dataset in demo.objects.values()}
    assert len(uids) == len(demo.objects)
    assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)


def test_every_object_says_that_it_is_synthetic(demo: Demo) -> None:
    for dataset in demo.objects.values():
        assert dataset.PatientName == "SYNTHETIC^IDCFS DEMO"
        assert dataset.PatientComments == NOTE
        for keyword in ("StudyDescription", "SeriesDescription", "InstitutionName", "Manufacturer"):
            assert dataset[keyword].value.startswith("SYNTHETIC")
    assert all(dataset.ImageComments == NOTE for dataset in demo.of_modality(*SLICES))
    readme = (demo.folder / "README.txt").read_text()
    assert "synthetic" in readme
    assert "CC0" in readme


def test_pixel_data_have_the_length_that_follows_from_the_attributes(demo: Demo) -> None:
    for image in demo.of_modality(*SLICES, "SEG", "SM"):
        samples = image.Rows * image.Columns * image.SamplesPerPixel * int(image.get("NumberOfFrames", 1))
        assert len(image.PixelData) == samples * image.BitsAllocated // 8


def test_derived_objects_refer_to_slices_that_exist(demo: Demo) -> None:
    for derived, source in SOURCES.items():
        (dataset,) = demo.series(derived)
        slices = demo.series(source)
        referenced = set(elements(dataset, "ReferencedSOPInstanceUID")) - {dataset.StudyInstanceUID}
        assert referenced
        assert referenced <= {image.SOPInstanceUID for image in slices}
        if dataset.Modality != "SR":
            assert dataset.FrameOfReferenceUID == slices[0].FrameOfReferenceUID


def test_a_segmentations_frames_lie_on_its_sources_slices_and_show_something(demo: Demo) -> None:
    for dataset in demo.of_modality("SEG"):
        frame_bytes = dataset.Rows * dataset.Columns // 8
        uuid = next(u for u, row in demo.rows.items() if row["SeriesInstanceUID"] == dataset.SeriesInstanceUID)
        positions = {image.SOPInstanceUID: image.ImagePositionPatient for image in demo.series(SOURCES[uuid])}
        for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            derivation = frame.DerivationImageSequence[0].SourceImageSequence[0]
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            assert position == positions[derivation.ReferencedSOPInstanceUID]
            assert any(dataset.PixelData[number * frame_bytes : (number + 1) * frame_bytes])


def test_a_structure_sets_contours_lie_on_their_slices(demo: Demo) -> None:
    (dataset,) = demo.of_modality("RTSTRUCT")
    heights = {image.SOPInstanceUID: image.ImagePositionPatient[2] for image in demo.series(CT_SERIES)}
    contours = dataset.ROIContourSequence[0].ContourSequence
    assert contours
    for contour in contours:
        assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints
        height = heights[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        assert set(contour.ContourData[2::3]) == {height}


def test_each_level_of_a_slide_has_half_the_resolution_and_covers_the_same_area(demo: Demo) -> None:
    levels = sorted(demo.of_modality("SM"), key=lambda level: int(level.InstanceNumber))
    assert [level.TotalPixelMatrixColumns for level in levels] == [1024 >> n for n in range(len(levels))]
    for level in levels:
        spacing = level.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]
        assert spacing * level.TotalPixelMatrixColumns == pytest.approx(level.ImagedVolumeWidth)
        assert level.NumberOfFrames == (-(-level.TotalPixelMatrixColumns // level.Columns)) ** 2


def test_simpleitk_reads_each_series_of_slices_as_a_volume(demo: Demo) -> None:
    for uuid, row in demo.rows.items():
        if row["Modality"] not in SLICES:
            continue
        folder = demo.folder / row["aws_bucket"] / uuid
        (series,) = itk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
        volume = reader.Execute()
        assert volume.GetSize() == (128, 128, row["instanceCount"])
        assert volume.GetSpacing()[2] == pytest.approx(float(demo.series(uuid)[0].SliceThickness))


def test_a_ct_is_in_hounsfield_units(demo: Demo) -> None:
    folder = demo.folder / demo.rows[CT_SERIES]["aws_bucket"] / CT_SERIES
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    extremes = itk.MinimumMaximumImageFilter()
    extremes.Execute(reader.Execute())
    assert extremes.GetMinimum() == -1024
    assert 300 < extremes.GetMaximum() < 1000


@pytest.mark.skipif(not shutil.which("dcm2niix"), reason="dcm2niix is not installed")
def test_dcm2niix_makes_one_volume_of_the_ct(demo: Demo, tmp_path: Path) -> None:
    folder = demo.folder / demo.rows[CT_SERIES]["aws_bucket"] / CT_SERIES
    subprocess.run(["dcm2niix", "-b", "n", "-f", "ct", "-o", tmp_path, folder], check=True, capture_output=True)
    (volume,) = tmp_path.glob("*.nii*")
    assert itk.ReadImage(str(volume)).GetSize() == (128, 128, demo.rows[CT_SERIES]["instanceCount"])


def test_two_runs_write_the_same_files(demo: Demo, tmp_path: Path) -> None:
    assert write_demo_mirror(tmp_path / "second", demo.index) == demo.summary
    assert fingerprints(tmp_path / "second") == fingerprints(demo.folder)


def test_an_interrupted_run_is_completed_and_right_files_are_left(demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "mirror"

    def interrupt(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_mirror(folder, demo.index, progress=interrupt)
    written = sorted(folder.glob("*/*/*.dcm"))
    right, short = written[0], written[-1]
    os.truncate(short, 100)
    unfinished = short.with_name(f".{short.name}.unfinished")
    unfinished.write_bytes(b"half")
    left = right.stat().st_ino
    write_demo_mirror(folder, demo.index)
    assert right.stat().st_ino == left
    assert fingerprints(folder) == fingerprints(demo.folder)


def test_a_run_interrupted_before_its_first_file_is_completed(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / ".README.txt.unfinished").write_bytes(b"")
    assert write_demo_mirror(tmp_path, demo.index) == demo.summary
    assert not (tmp_path / ".README.txt.unfinished").exists()


def test_progress_is_reported_after_each_instance(demo: Demo) -> None:
    reported: list[tuple[int, int]] = []
    write_demo_mirror(demo.folder, demo.index, progress=lambda done, total: reported.append((done, total)))
    assert reported == [(done, len(demo.objects)) for done in range(1, len(demo.objects) + 1)]


@pytest.mark.parametrize("name", ["thesis.tex", "README.txt"])
def test_another_folder_is_refused_and_unchanged(index: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=r"not a demo mirror; name another folder") as refusal:
        write_demo_mirror(tmp_path, index)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_file_instead_of_a_folder_is_refused(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="name another folder"):
        write_demo_mirror(tmp_path / "file", index)


def test_series_that_the_index_lacks_are_skipped_with_those_derived_from_them(index: Path, tmp_path: Path) -> None:
    head, its_segmentation = "3528931f-75ed-49e7-a98b-84704208e5b1", "c4136534-d280-4c39-b199-5ecf4fecea7f"
    report = "a153abb4-ed73-40d3-8042-98cb931c0dc7"
    other = write_rows(index, tmp_path / "index.parquet", {head, its_segmentation, report})
    summary = write_demo_mirror(tmp_path / "mirror", other)
    assert (summary.series, summary.instances) == (2, 33)
    assert set(summary.skipped) == set(DEMO_SERIES) - {head, its_segmentation}


def test_an_index_without_any_of_the_series_is_unusable(index: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexUnusable, match="none of the demo's series"):
        write_demo_mirror(tmp_path / "mirror", write_rows(index, tmp_path / "index.parquet", set()))
    assert not (tmp_path / "mirror").exists()


@pytest.mark.parametrize("content", [None, b"not a parquet file"])
def test_an_index_that_cannot_be_read_is_unusable(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "index.parquet"
    if content:
        path.write_bytes(content)
    with pytest.raises(IndexUnusable, match="cannot read the index"):
        write_demo_mirror(tmp_path / "mirror", path)


def test_an_index_without_a_needed_column_is_unusable(index: Path, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(index).drop_columns(["aws_bucket"])
    pyarrow.parquet.write_table(table, tmp_path / "index.parquet")
    with pytest.raises(IndexUnusable, match="cannot read the index"):
        write_demo_mirror(tmp_path / "mirror", tmp_path / "index.parquet")
