"""The demo's whole slide image: a pyramid of tiled, uncompressed RGB images.

Each instance of the series has half the resolution of the one before it. All show the same stained tissue, and cover
the same area of glass.
"""

from math import isqrt

from pydicom.dataset import Dataset

from idcfs.demo.colour import SRGB_PROFILE
from idcfs.demo.modules import (
    TIME,
    add_content_time,
    add_dimensions,
    add_frame_of_reference,
    code,
    dicom_date,
    item,
    new_object,
)
from idcfs.demo.selection import IndexedSeries, synthetic_uid

TILE = 256
_BASE = 1024
_BASE_SPACING = 0.001
_DIMENSIONS = "RowPositionInTotalImagePixelMatrix", "ColumnPositionInTotalImagePixelMatrix"
_NUCLEI = 600
_GLASS = bytes((242, 240, 244))
_NUCLEUS = bytes((92, 48, 132))


def slide_level(series: IndexedSeries, number: int) -> Dataset:
    """Return one resolution; the first is the finest."""
    reduction = number - 1
    size = max(1, _BASE >> reduction)
    tiles = _tiles(_tissue(size, reduction), size)
    image = new_object(series, number)
    add_frame_of_reference(image, series)
    add_content_time(image, series)
    image.PositionReferenceIndicator = "SLIDE_CORNER"
    image.ImageType = (
        ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"] if reduction else ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    )
    image.AcquisitionDateTime = dicom_date(series.content_date) + TIME
    image.AcquisitionContextSequence = []
    image.PyramidUID = synthetic_uid("pyramid", series.crdc_series_uuid)
    _add_specimen(image, series)
    _add_matrix(image, size)
    _add_optical_path(image)
    add_dimensions(image, series, "TILED_FULL", dict.fromkeys(_DIMENSIONS, "PlanePositionSlideSequence"))
    _add_functional_groups(image, reduction)
    _add_pixels(image, tiles)
    return image


def _tissue(size: int, reduction: int) -> list[bytes]:
    """Paint a round section with scattered nuclei, as rows of RGB."""
    glass = _GLASS * size
    stain = b"".join(bytes((232 - 30 * x // size, 150 + 30 * x // size, 190)) for x in range(size))
    rows = [bytearray(glass) for _ in range(size)]
    half = size // 2
    _paint_disc(rows, half, half, size * 45 // 100, stain)
    nuclei = _NUCLEUS * size
    for nucleus in range(_NUCLEI):
        # Multiples of a number that is prime to the modulus scatter the nuclei evenly, without randomness.
        x, y = nucleus * 389 % 997, nucleus * 613 % 991
        if (x - _BASE // 2) ** 2 + (y - _BASE // 2) ** 2 < (_BASE * 43 // 100) ** 2:
            _paint_disc(rows, x >> reduction, y >> reduction, (5 + nucleus % 6) >> reduction, nuclei)
    return [bytes(row) for row in rows]


def _paint_disc(rows: list[bytearray], x: int, y: int, radius: int, paint: bytes) -> None:
    for row in range(max(0, y - radius), min(len(rows), y + radius + 1)):
        half = isqrt(radius**2 - (row - y) ** 2)
        span = slice(3 * max(0, x - half), 3 * min(len(rows), x + half + 1))
        rows[row][span] = paint[span]


def _tiles(rows: list[bytes], size: int) -> list[bytes]:
    """Cut the rows into tiles, row by row; a tile that reaches beyond the image is filled with glass."""
    side = -(-size // TILE) * TILE
    padded = [row + _GLASS * (side - size) for row in rows] + [_GLASS * side] * (side - size)
    return [
        b"".join(row[3 * left : 3 * (left + TILE)] for row in padded[top : top + TILE])
        for top in range(0, side, TILE)
        for left in range(0, side, TILE)
    ]


def _add_specimen(image: Dataset, series: IndexedSeries) -> None:
    image.ContainerIdentifier = "SYNTHETIC"
    image.IssuerOfTheContainerIdentifierSequence = []
    image.ContainerTypeCodeSequence = code("433466003", "SCT", "Microscope slide")
    image.SpecimenDescriptionSequence = [
        item(
            SpecimenIdentifier="SYNTHETIC",
            SpecimenUID=synthetic_uid("specimen", series.crdc_series_uuid),
            IssuerOfTheSpecimenIdentifierSequence=[],
            SpecimenPreparationSequence=[],
        )
    ]


def _add_matrix(image: Dataset, size: int) -> None:
    image.ImagedVolumeWidth = image.ImagedVolumeHeight = _BASE * _BASE_SPACING
    image.ImagedVolumeDepth = 4.0
    image.TotalPixelMatrixColumns = image.TotalPixelMatrixRows = size
    image.TotalPixelMatrixFocalPlanes = 1
    image.TotalPixelMatrixOriginSequence = [item(XOffsetInSlideCoordinateSystem=20, YOffsetInSlideCoordinateSystem=40)]
    image.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    image.VolumetricProperties = "VOLUME"
    image.SpecimenLabelInImage = "NO"
    image.BurnedInAnnotation = "NO"
    image.FocusMethod = "AUTO"
    image.ExtendedDepthOfField = "NO"
    image.LossyImageCompression = "00"


def _add_optical_path(image: Dataset) -> None:
    image.NumberOfOpticalPaths = 1
    image.OpticalPathSequence = [
        item(
            OpticalPathIdentifier="1",
            OpticalPathDescription="SYNTHETIC brightfield",
            IlluminationTypeCodeSequence=code("111744", "DCM", "Brightfield illumination"),
            IlluminationColorCodeSequence=code("414298005", "SCT", "Full Spectrum"),
            ICCProfile=SRGB_PROFILE,
            ColorSpace="SRGB",
        )
    ]


def _add_functional_groups(image: Dataset, reduction: int) -> None:
    spacing = _BASE_SPACING * 2**reduction
    image.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[spacing, spacing], SliceThickness=0.004)],
            WholeSlideMicroscopyImageFrameTypeSequence=[item(FrameType=image.ImageType)],
            OpticalPathIdentificationSequence=[item(OpticalPathIdentifier="1")],
        )
    ]


def _add_pixels(image: Dataset, tiles: list[bytes]) -> None:
    image.NumberOfFrames = len(tiles)
    image.SamplesPerPixel = 3
    image.PhotometricInterpretation = "RGB"
    image.PlanarConfiguration = 0
    image.Rows = image.Columns = TILE
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelRepresentation = 0
    image.PixelData = b"".join(tiles)
