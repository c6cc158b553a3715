"""The made-up anatomy: ellipsoids on a grid, as pixel bytes, masks and contours.

Only integer arithmetic is used, so that every machine computes the same bytes. Columns and rows are pixels; depth is in
thousandths of the volume, so that a phantom fits any number of slices.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

COLUMNS = ROWS = 128
_DEPTH = 1000


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """A body whose value rises by `gradient` from the left edge of the volume to the right one."""

    column: int
    row: int
    depth: int
    column_radius: int
    row_radius: int
    depth_radius: int
    value: int
    gradient: int = 0

    def spans(self, depth: int) -> Iterator[tuple[int, range]]:
        """Yield the rows at this depth that the body reaches, and the columns it covers there."""
        for row in range(ROWS):
            in_row = (self.row_radius * (depth - self.depth)) ** 2
            in_depth = (self.depth_radius * (row - self.row)) ** 2
            left_over = (self.row_radius * self.depth_radius) ** 2 - in_row - in_depth
            if left_over > 0:
                half = self.column_radius * isqrt(left_over) // (self.row_radius * self.depth_radius)
                yield row, range(max(0, self.column - half), min(COLUMNS, self.column + half + 1))

    def shades(self) -> bytes:
        """Return its value in each column, as 16-bit little-endian pixels."""
        values = (self.value + self.gradient * column // COLUMNS for column in range(COLUMNS))
        return struct.pack(f"<{COLUMNS}H", *values)


@dataclass(frozen=True, slots=True)
class Phantom:
    """Bodies painted one over the other; the last is the lesion that segmentations and contours outline.

    Spacing and thickness are in millimetres, and exact in binary: they are written as decimal strings.
    """

    spacing: float
    thickness: float
    bodies: tuple[Ellipsoid, ...]

    def position(self, index: int) -> list[float]:
        """Return the patient coordinates of the centre of a slice's first pixel."""
        return [*self.point(0, 0), index * self.thickness]

    def point(self, column: int, row: int) -> tuple[float, float]:
        """Return the patient coordinates x and y of a pixel's centre."""
        return (column - (COLUMNS - 1) / 2) * self.spacing, (row - (ROWS - 1) / 2) * self.spacing

    def pixels(self, index: int, slices: int) -> bytes:
        """Return a slice as 16-bit little-endian pixels."""
        image = bytearray(2 * COLUMNS * ROWS)
        depth = _depth(index, slices)
        for body in self.bodies:
            shades = body.shades()
            for row, span in body.spans(depth):
                start = 2 * row * COLUMNS
                left, right = 2 * span.start, 2 * span.stop
                image[start + left : start + right] = shades[left:right]
        return bytes(image)

    def lesion_slices(self, slices: int) -> list[int]:
        """Return the indices of the slices that show the lesion."""
        return [index for index in range(slices) if any(self.lesion_spans(index, slices))]

    def lesion_spans(self, index: int, slices: int) -> Iterator[tuple[int, range]]:
        """Return the rows of a slice that show the lesion, and the columns it covers there."""
        return self.bodies[-1].spans(_depth(index, slices))

    def lesion_mask(self, index: int, slices: int) -> bytes:
        """Return the lesion in a slice as one bit a pixel, the first in the lowest bit."""
        bits = 0
        for row, span in self.lesion_spans(index, slices):
            bits |= ((1 << len(span)) - 1) << (row * COLUMNS + span.start)
        return bits.to_bytes(COLUMNS * ROWS // 8, "little")

    def lesion_contour(self, index: int, slices: int) -> list[float]:
        """Return the lesion's outline in a slice: down its left edge and up its right one, as x, y, z."""
        spans = list(self.lesion_spans(index, slices))
        outline = [(span.start, row) for row, span in spans] + [(span[-1], row) for row, span in reversed(spans)]
        height = index * self.thickness
        return [value for pixel in dict.fromkeys(outline) for value in (*self.point(*pixel), height)]

    def lesion_volume(self, slices: int) -> float:
        """Return the lesion's volume in cubic millimetres."""
        pixels = sum(len(span) for index in range(slices) for _, span in self.lesion_spans(index, slices))
        return pixels * self.spacing**2 * self.thickness


def _depth(index: int, slices: int) -> int:
    return _DEPTH * (2 * index + 1) // (2 * slices)


CHEST = Phantom(
    spacing=2.5,
    thickness=5.0,
    bodies=(
        Ellipsoid(64, 64, 500, 56, 42, 900, value=1044, gradient=40),
        Ellipsoid(40, 62, 500, 19, 28, 460, value=150, gradient=60),
        Ellipsoid(88, 62, 500, 19, 28, 460, value=150, gradient=60),
        Ellipsoid(64, 94, 500, 7, 7, 4000, value=1400, gradient=300),
        Ellipsoid(70, 60, 430, 13, 16, 200, value=1080, gradient=60),
        Ellipsoid(36, 58, 520, 8, 8, 110, value=1054, gradient=80),
    ),
)
"""In Hounsfield units plus 1024: trunk, two lungs, spine, heart and a nodule."""

HEAD = Phantom(
    spacing=1.75,
    thickness=5.0,
    bodies=(
        Ellipsoid(64, 64, 450, 46, 56, 560, value=700, gradient=200),
        Ellipsoid(64, 64, 450, 42, 52, 520, value=80),
        Ellipsoid(64, 64, 450, 39, 49, 480, value=420, gradient=160),
        Ellipsoid(56, 62, 480, 5, 16, 160, value=120),
        Ellipsoid(72, 62, 480, 5, 16, 160, value=120),
        Ellipsoid(84, 46, 560, 10, 11, 130, value=760, gradient=120),
    ),
)
"""In arbitrary units: scalp, skull, brain, two ventricles and a tumour."""

TRUNK = Phantom(
    spacing=4.0,
    thickness=4.25,
    bodies=(
        Ellipsoid(64, 64, 500, 46, 32, 900, value=900, gradient=200),
        Ellipsoid(46, 62, 640, 13, 20, 260, value=300, gradient=100),
        Ellipsoid(82, 62, 640, 13, 20, 260, value=300, gradient=100),
        Ellipsoid(52, 62, 260, 17, 15, 160, value=2600, gradient=400),
        Ellipsoid(80, 58, 660, 5, 5, 60, value=9000, gradient=3000),
    ),
)
"""In half becquerels per millilitre: trunk, two lungs, liver and a hot spot."""
