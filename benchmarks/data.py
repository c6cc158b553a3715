"""Makes the objects for the benchmarks of reading: DICOM that tools can read, for series of the installed index.

Each object has its own name, identifiers and geometry. The pixels are one random block for each size of image.
"""

import contextlib
import io
import random
import struct
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
)

from benchmarks import processes
from benchmarks.index_rows import SeriesRow, find_series
from benchmarks.nginx import Listed, Server, listing_path, serving, write_listing
from benchmarks.workspace import Workspace

MANY = 20
LISTED_BYTES, LISTED_MOMENT = 99_000, 1_700_000_000
"""Size and LastModified of the objects of the largest series, which are only listed; real ones have about this size."""

SIDES = {"CT": 512, "PT": 128}
COMMENT_BYTES = {"CT": 500, "PT": 2400}
"""Bytes of a text in each header that gives objects the size of real ones, 526 kB and 36 kB."""

CLASSES = {"CT": CTImageStorage, "PT": PositronEmissionTomographyImageStorage, "SR": BasicTextSRStorage}

_STUDY = """StudyInstanceUID = (SELECT StudyInstanceUID FROM series GROUP BY ALL
    HAVING bool_and(Modality IN ('CT', 'PT')) AND count(DISTINCT Modality) = 2 AND count(*) BETWEEN 3 AND 6
    AND sum(instanceCount) BETWEEN 300 AND 700 AND min(instanceCount) >= 20 AND sum(series_size_MB) > 120
    ORDER BY ALL LIMIT 1)"""
_PATIENT = f"""(collection_id, PatientID) = (SELECT (collection_id, PatientID) FROM series
    GROUP BY collection_id, PatientID HAVING count(*) FILTER (Modality = 'SR' AND instanceCount = 1) = {MANY}
    ORDER BY ALL LIMIT 1)"""


class DataSets(NamedTuple):
    """The series of each set of data."""

    many: list[SeriesRow]
    """CT series of 200 instances."""
    one: list[SeriesRow]
    """A CT series of 304 instances."""
    pet: list[SeriesRow]
    """A series of 2,000 small instances."""
    largest: list[SeriesRow]
    """The series with the most instances, which is listed and never read."""
    study: list[SeriesRow]
    """All series of a study."""
    reports: list[SeriesRow]
    """Series of one small instance each, all of one patient."""
    slide: list[SeriesRow]
    """A series of one large instance with an empty Basic Offset Table."""
    slide_with_table: list[SeriesRow]
    """A series of one large instance with a filled Basic Offset Table."""


def find() -> DataSets:
    """Choose the series; loads duckdb, so it is called in a child process."""
    slides = find_series("Modality = 'SM' AND instanceCount = 1", limit=2)
    return DataSets(
        many=find_series("Modality = 'CT' AND instanceCount = 200", limit=MANY),
        one=find_series("Modality = 'CT' AND instanceCount = 304 AND series_size_MB BETWEEN 155 AND 165"),
        pet=find_series("Modality = 'PT'", "abs(instanceCount - 2000)"),
        largest=find_series("TRUE", "instanceCount DESC"),
        study=find_series(_STUDY, limit=10),
        reports=find_series(f"Modality = 'SR' AND instanceCount = 1 AND {_PATIENT}", limit=MANY),
        slide=slides[:1],
        slide_with_table=slides[1:],
    )


@contextlib.contextmanager
def served(workspace: Workspace, names: Collection[str] = DataSets._fields) -> Iterator[tuple[Server, DataSets]]:
    """Serve the sets called *names* from memory; each is made once in a workspace."""
    root = workspace.folder / "mirror"
    sets = make(root, names)
    with serving(workspace.folder / "nginx", root) as server:
        workspace.environment["AWS_CA_BUNDLE"] = str(server.certificate)
        # Reading all files now puts them into the page cache, so that the disk is not measured.
        workspace.run("find", root, "-type", "f", "-exec", "cat", "{}", "+")
        yield server, sets


def size_of(workspace: Workspace, series: Iterable[SeriesRow]) -> int:
    """The bytes of all objects of some served series."""
    folders = (workspace.folder / "mirror" / row.bucket / row.uuid for row in series)
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir())


def make(root: Path, names: Collection[str] = DataSets._fields) -> DataSets:
    """Make the sets called *names* in *root*, as far as they are missing, for `benchmarks.nginx`; return all sets."""
    sets = processes.in_child(find)
    for name in names:
        for row in getattr(sets, name):
            if not listing_path(root, row.bucket, row.uuid).exists():
                write_listing(root, row.bucket, row.uuid, _make_series(name, root / row.bucket, row))
    return sets


def _make_series(name: str, bucket: Path, row: SeriesRow) -> list[Listed]:
    keys = list(_keys(row))
    if name == "largest":
        return [Listed(key, LISTED_BYTES, LISTED_MOMENT) for key in keys]
    (bucket / row.uuid).mkdir(parents=True, exist_ok=True)
    if name.startswith("slide"):
        # This import needs Pillow, which is not installed for tests.
        from benchmarks.slides import write_slide

        _, patient, study, _ = row.folder.parts
        write_slide(
            bucket / keys[0],
            offset_table=name == "slide_with_table",
            patient_id=patient,
            study_uid=study,
            series_uid=_series_uid(row),
        )
    else:
        for key, content in zip(keys, _instances(row, keys), strict=True):
            (bucket / key).write_bytes(content)
    found = ((key, (bucket / key).stat()) for key in keys)
    return [Listed(key, status.st_size, int(status.st_mtime)) for key, status in found]


def _keys(row: SeriesRow) -> Iterator[str]:
    """The keys of a series' objects, the same every time, and unordered as IDC's are."""
    source = random.Random(row.uuid)
    for _ in range(row.instances):
        yield f"{row.uuid}/{uuid.UUID(int=source.getrandbits(128), version=4)}.dcm"


def _instances(row: SeriesRow, keys: list[str]) -> Iterator[bytes]:
    """The objects of a series."""
    modality = row.folder.name.partition("_")[0]
    dataset = _dataset(row, modality)
    pixels = _pixels(SIDES[modality]) if modality in SIDES else b""
    for number, key in enumerate(keys, 1):
        dataset.InstanceNumber = number
        dataset.SOPInstanceUID = f"2.25.{uuid.UUID(Path(key).stem).int}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if pixels:
            dataset.ImagePositionPatient = [-250, -250, 1.25 * number]
            dataset.SliceLocation = 1.25 * number
        file = io.BytesIO()
        dcmwrite(file, dataset, enforce_file_format=True)
        yield file.getvalue() + pixels


def _dataset(row: SeriesRow, modality: str) -> Dataset:
    """The attributes that the objects of a series share."""
    _, patient, study, _ = row.folder.parts
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CLASSES[modality]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Modality = modality
    dataset.PatientID = patient
    dataset.PatientName = "BENCHMARK^IDCFS"
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = _series_uid(row)
    dataset.SeriesNumber = int(row.uuid[:4], 16)
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20010203"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = "120000"
    dataset.Manufacturer = "idcfs"
    if modality in SIDES:
        _add_image(dataset, row, modality)
    else:
        dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
        dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    return dataset


def _series_uid(row: SeriesRow) -> str:
    return row.folder.name.partition("_")[2]


def _add_image(dataset: Dataset, row: SeriesRow, modality: str) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImageComments = "x" * COMMENT_BYTES[modality]
    dataset.FrameOfReferenceUID = f"2.25.{uuid.UUID(row.uuid).int}"
    dataset.PatientPosition = "HFS"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [500 / SIDES[modality]] * 2
    dataset.SliceThickness = 1.25
    dataset.Rows = dataset.Columns = SIDES[modality]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1


def _pixels(side: int) -> bytes:
    """The Pixel Data element, the last of a file; it is encoded once, because it is nearly all of the file."""
    data = random.Random(side).randbytes(2 * side * side)
    return struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, len(data)) + data
