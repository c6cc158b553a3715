"""The demo's whole slide image: a pyramid of tiled, uncompressed RGB images.

Each instance of the series has half the resolution of the one before it. All show the same stained tissue, and cover
the same area of glass.
"""

from math import isqrt
from typing import Any

from pydicom.dataset import Dataset

from idcfs.demo.colour import SRGB_PROFILE
from idcfs.demo.modules import TIME, code, content_time, dimensions, frame_of_reference, item, new_object, pixels
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
    image_type = (
        ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"] if reduction else ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    )
    spacing = _BASE_SPACING * 2**reduction
    return new_object(
        series,
        number,
        **frame_of_reference(series, "SLIDE_CORNER"),
        **content_time(series),
        **dimensions(series, "TILED_FULL", dict.fromkeys(_DIMENSIONS, "PlanePositionSlideSequence")),
        **pixels(TILE, 8, b"".join(tiles), "RGB"),
        **_specimen(series),
        **_matrix(size),
        **_optical_path(),
        ImageType=image_type,
        AcquisitionDateTime=series.content_date + TIME,
        AcquisitionContextSequence=[],
        PyramidUID=synthetic_uid("pyramid", series.crdc_series_uuid),
        PlanarConfiguration=0,
        NumberOfFrames=len(tiles),
        SharedFunctionalGroupsSequence=[
            item(
                PixelMeasuresSequence=[item(PixelSpacing=[spacing, spacing], SliceThickness=0.004)],
                WholeSlideMicroscopyImageFrameTypeSequence=[item(FrameType=image_type)],
                OpticalPathIdentificationSequence=[item(OpticalPathIdentifier="1")],
            )
        ],
    )


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


def _specimen(series: IndexedSeries) -> dict[str, Any]:
    specimen = item(
        SpecimenIdentifier="SYNTHETIC",
        SpecimenUID=synthetic_uid("specimen", series.crdc_series_uuid),
        IssuerOfTheSpecimenIdentifierSequence=[],
        SpecimenPreparationSequence=[],
    )
    return {
        "ContainerIdentifier": "SYNTHETIC",
        "IssuerOfTheContainerIdentifierSequence": [],
        "ContainerTypeCodeSequence": code("433466003", "SCT", "Microscope slide"),
        "SpecimenDescriptionSequence": [specimen],
    }


def _matrix(size: int) -> dict[str, Any]:
    return {
        "ImagedVolumeWidth": _BASE * _BASE_SPACING,
        "ImagedVolumeHeight": _BASE * _BASE_SPACING,
        "ImagedVolumeDepth": 4.0,
        "TotalPixelMatrixColumns": size,
        "TotalPixelMatrixRows": size,
        "TotalPixelMatrixFocalPlanes": 1,
        "TotalPixelMatrixOriginSequence": [item(XOffsetInSlideCoordinateSystem=20, YOffsetInSlideCoordinateSystem=40)],
        "ImageOrientationSlide": [0, -1, 0, -1, 0, 0],
        "VolumetricProperties": "VOLUME",
        "SpecimenLabelInImage": "NO",
        "BurnedInAnnotation": "NO",
        "FocusMethod": "AUTO",
        "ExtendedDepthOfField": "NO",
        "LossyImageCompression": "00",
    }


def _optical_path() -> dict[str, Any]:
    path = item(
        OpticalPathIdentifier="1",
        OpticalPathDescription="SYNTHETIC brightfield",
        IlluminationTypeCodeSequence=code("111744", "DCM", "Brightfield illumination"),
        IlluminationColorCodeSequence=code("414298005", "SCT", "Full Spectrum"),
        ICCProfile=SRGB_PROFILE,
        ColorSpace="SRGB",
    )
    return {"NumberOfOpticalPaths": 1, "OpticalPathSequence": [path]}
