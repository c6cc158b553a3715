"""Writes slides as whole slide scanners do, and times viewers that open them.

`write_slide` makes one level of a slide, a TILED_FULL image of JPEG frames. Real slides have a filled or an empty Basic
Offset Table; with an empty one, a viewer finds a frame only by going through all before it. Frames differ in length, as
in real slides, so that a viewer cannot compute where they are.

``python -m benchmarks.slides PROGRAM PATH`` opens a slide and reads from it, in a new process, which has nothing in
memory. It prints the seconds as JSON, and fails if the pixels are not those that were written.
"""

import argparse
import functools
import io
import itertools
import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image, ImageChops, ImageStat
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from idcfs.demo.colour import SRGB_PROFILE
from idcfs.demo.modules import code, item
from idcfs.demo.selection import synthetic_uid

FRAME = 512
"""Rows and columns of a frame."""

FRAMES_ACROSS = 68
"""Frames in a row of the finest level, which is square: 4,624 frames, 300 MB."""

TILES = 32
"""Different images, of different lengths, from which the frames are chosen."""

FAINTEST, STRONGEST = 0.28, 0.41
"""The smallest and largest part of noise in a tile, which give 59 and 72 kB of JPEG."""

STAIN = (222, 165, 190)
"""The colour of a tile without noise: the pink of eosin."""

GRAIN = 4
"""Pixels for each grain of noise, which is about the size of chromatin."""

QUALITY = 80

SPACING = 0.00025
"""Millimetres between the finest level's pixels: what a 40x objective gives."""

REGION = 256
"""Rows and columns of each region that is read, which lies within one frame."""

RANDOM_REGIONS = 20

MOST_DIFFERENCE = 4.0
"""The most that two JPEG decoders may differ on one frame, as a mean of 256 levels; different tiles differ by 18."""

_ITEM_HEADER = struct.Struct("<HHL")
_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_UNDEFINED_LENGTH = 0xFFFFFFFF


def write_slide(
    path: Path, *, offset_table: bool, patient_id: str, study_uid: str, series_uid: str, level: int = 0
) -> None:
    """Write one level of a slide, the same bytes every time.

    Args:
        path: the file.
        offset_table: whether the Basic Offset Table is filled; otherwise it is empty.
        patient_id: its PatientID.
        study_uid: its StudyInstanceUID.
        series_uid: its SeriesInstanceUID, which all levels of a slide share.
        level: 0 is the finest; 1 and 2 have half the rows and columns of the level before, and other tiles, because
            levels are not compared with each other.
    """
    image = _image(level)
    image.PatientID = patient_id
    image.StudyInstanceUID = study_uid
    image.SeriesInstanceUID = series_uid
    image.SOPInstanceUID = UID(synthetic_uid("benchmark slide", series_uid, level))
    image.FrameOfReferenceUID = synthetic_uid("frame of reference", study_uid)
    frames = [_jpeg(number) for number in _tile_numbers(level)]
    with path.open("wb") as file:
        file.write(_encode(image))
        file.writelines(_pixel_data(frames, offset_table))


def _frames_across(level: int) -> int:
    return FRAMES_ACROSS >> level


@functools.cache
def _tile_numbers(level: int) -> list[int]:
    """The number of the tile in each frame of a level."""
    return random.Random(level).choices(range(TILES), k=_frames_across(level) ** 2)


@functools.cache
def _jpeg(number: int) -> bytes:
    """A tile as JPEG, padded to an even number of bytes: noise on a stain."""
    side = FRAME // GRAIN
    noise = Image.frombytes("RGB", (side, side), random.Random(number).randbytes(3 * side * side))
    stain = Image.new("RGB", (FRAME, FRAME), STAIN)
    strength = FAINTEST + (STRONGEST - FAINTEST) * number / (TILES - 1)
    tile = Image.blend(stain, noise.resize(stain.size, Image.Resampling.BICUBIC), strength)
    file = io.BytesIO()
    tile.save(file, "JPEG", quality=QUALITY, subsampling="4:2:2")
    return file.getvalue() + b"\0" * (file.tell() % 2)


def _pixel_data(frames: list[bytes], offset_table: bool) -> Iterator[bytes]:
    """The Pixel Data element in pieces, because pydicom would need all of it in memory."""
    yield struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, _UNDEFINED_LENGTH)
    steps = (_ITEM_HEADER.size + len(frame) for frame in frames[:-1])
    offsets = list(itertools.accumulate(steps, initial=0)) if offset_table else []
    yield _ITEM_HEADER.pack(*_ITEM, 4 * len(offsets))
    yield struct.pack(f"<{len(offsets)}L", *offsets)
    for frame in frames:
        yield _ITEM_HEADER.pack(*_ITEM, len(frame))
        yield frame
    yield _ITEM_HEADER.pack(*_SEQUENCE_END, 0)


def _encode(image: Dataset) -> bytes:
    """The file up to its pixel data."""
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    file = io.BytesIO()
    dcmwrite(file, image, enforce_file_format=True)
    return file.getvalue()


def _image(level: int) -> Dataset:
    """The attributes of a level, except its patient, study and series."""
    side = _frames_across(level) * FRAME
    kind = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"] if level else ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image = item(
        SpecificCharacterSet="ISO_IR 192",
        ImageType=kind,
        SOPClassUID=VLWholeSlideMicroscopyImageStorage,
        StudyDate="20000101",
        StudyTime="120000",
        ContentDate="20000101",
        ContentTime="120000",
        AcquisitionDateTime="20000101120000",
        AccessionNumber="",
        ReferringPhysicianName="",
        PatientName="SYNTHETIC^BENCHMARK",
        PatientBirthDate="",
        PatientSex="",
        StudyID="BENCHMARK",
        SeriesNumber=1,
        InstanceNumber=level + 1,
        Modality="SM",
        Manufacturer="SYNTHETIC (idcfs benchmark)",
        ManufacturerModelName="SYNTHETIC",
        DeviceSerialNumber="SYNTHETIC",
        SoftwareVersions="1",
        PositionReferenceIndicator="SLIDE_CORNER",
        AcquisitionContextSequence=[],
    )
    _add_slide(image)
    _add_matrix(image, kind, side, SPACING * 2**level)
    _add_frames(image, _frames_across(level) ** 2)
    return image


def _add_slide(image: Dataset) -> None:
    image.ContainerIdentifier = "SYNTHETIC"
    image.IssuerOfTheContainerIdentifierSequence = []
    image.ContainerTypeCodeSequence = code("433466003", "SCT", "Microscope slide")
    image.SpecimenDescriptionSequence = [
        item(
            SpecimenIdentifier="SYNTHETIC",
            SpecimenUID=synthetic_uid("benchmark specimen"),
            IssuerOfTheSpecimenIdentifierSequence=[],
            SpecimenPreparationSequence=[],
        )
    ]
    image.NumberOfOpticalPaths = 1
    image.OpticalPathSequence = [
        item(
            OpticalPathIdentifier="1",
            IlluminationTypeCodeSequence=code("111744", "DCM", "Brightfield illumination"),
            IlluminationColorCodeSequence=code("414298005", "SCT", "Full Spectrum"),
            ObjectiveLensPower=40,
            ICCProfile=SRGB_PROFILE,
        )
    ]


def _add_matrix(image: Dataset, kind: list[str], side: int, spacing: float) -> None:
    """Add the total pixel matrix, which covers the same area of glass at all levels."""
    image.ImagedVolumeWidth = image.ImagedVolumeHeight = side * spacing
    image.ImagedVolumeDepth = 4.0
    image.TotalPixelMatrixColumns = image.TotalPixelMatrixRows = side
    image.TotalPixelMatrixFocalPlanes = 1
    image.TotalPixelMatrixOriginSequence = [item(XOffsetInSlideCoordinateSystem=20, YOffsetInSlideCoordinateSystem=40)]
    image.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    image.DimensionOrganizationType = "TILED_FULL"
    image.DimensionOrganizationSequence = [item(DimensionOrganizationUID=synthetic_uid("benchmark dimensions"))]
    image.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[spacing, spacing], SliceThickness=0.004)],
            WholeSlideMicroscopyImageFrameTypeSequence=[item(FrameType=kind)],
            OpticalPathIdentificationSequence=[item(OpticalPathIdentifier="1")],
        )
    ]


def _add_frames(image: Dataset, frames: int) -> None:
    image.NumberOfFrames = frames
    image.Rows = image.Columns = FRAME
    image.SamplesPerPixel = 3
    image.PhotometricInterpretation = "YBR_FULL_422"
    image.PlanarConfiguration = 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelRepresentation = 0
    image.VolumetricProperties = "VOLUME"
    image.SpecimenLabelInImage = image.BurnedInAnnotation = image.ExtendedDepthOfField = "NO"
    image.FocusMethod = "AUTO"
    image.LossyImageCompression = "01"
    image.LossyImageCompressionMethod = "ISO_10918_1"
    image.LossyImageCompressionRatio = 12


class Region(NamedTuple):
    """Pixels that a viewer read at the left upper corner of a frame of the finest level."""

    frame: int
    pixels: Image.Image

    def check(self) -> None:
        """Compare the pixels with those that were written.

        Raises:
            ValueError: they differ by more than decoders do.
        """
        tile = Image.open(io.BytesIO(_jpeg(_tile_numbers(0)[self.frame]))).convert("RGB")
        difference = ImageChops.difference(tile.crop((0, 0, REGION, REGION)), self.pixels.convert("RGB"))
        mean = max(ImageStat.Stat(difference).mean)
        if mean > MOST_DIFFERENCE:
            raise ValueError(f"frame {self.frame} is not what was written: it differs by {mean:.0f} of 256 on average")


class Slide(Protocol):
    """The method that OpenSlide and wsidicom have in common."""

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """The pixels of a region of *size* whose left upper corner is *location*."""


Opener = Callable[[Path], AbstractContextManager[Slide]]


def _openslide() -> Opener:
    from openslide import OpenSlide

    return OpenSlide


def _wsidicom() -> Opener:
    from wsidicom import WsiDicom  # type: ignore[import-untyped]  # it ships no types

    return WsiDicom.open  # type: ignore[no-any-return]  # as above


FIRST = [0]
RANDOM = random.Random("regions").sample(range(FRAMES_ACROSS**2), RANDOM_REGIONS)

PROGRAMS = {
    "openslide-first": (_openslide, FIRST),
    "openslide-random": (_openslide, RANDOM),
    "wsidicom-first": (_wsidicom, FIRST),
}
"""The viewer of each program, and the frames of which it reads a region."""


def measure(program: str, path: Path) -> dict[str, float]:
    """Open a slide and read regions; return the seconds in total, of opening, and of reading.

    Viewers defer work from opening to the first read, so only their totals can be compared.

    Args:
        program: one of `PROGRAMS`.
        path: the finest level, beside which OpenSlide looks for the others; for wsidicom it may be the folder of all.

    Raises:
        ValueError: the pixels are not those that were written.
    """
    load, frames = PROGRAMS[program]
    open_slide = load()
    start = time.perf_counter()
    with open_slide(path) as slide:
        opened = time.perf_counter()
        regions = [Region(frame, slide.read_region(_corner(frame), 0, (REGION, REGION))) for frame in frames]
        stop = time.perf_counter()
    for region in regions:
        region.check()
    return {"seconds": stop - start, "open": opened - start, "regions": stop - opened}


def _corner(frame: int) -> tuple[int, int]:
    row, column = divmod(frame, FRAMES_ACROSS)
    return column * FRAME, row * FRAME


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Times a viewer of slides; prints seconds as JSON.")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.program, arguments.path)))
