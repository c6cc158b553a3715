"""Readers that are timed: ``python -m benchmarks.programs PROGRAM FOLDER`` prints what it found as JSON.

Each is a process of its own, so that nothing is loaded or remembered from before. Seconds are counted from when the
libraries are loaded.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def headers(folder: Path) -> dict[str, float]:
    """Read all headers of a series."""
    import pydicom

    start = time.perf_counter()
    positions = {pydicom.dcmread(folder / name, stop_before_pixels=True).InstanceNumber for name in os.listdir(folder)}
    return {"seconds": time.perf_counter() - start, "found": len(positions)}


def first_byte(folder: Path) -> dict[str, float]:
    """Read the first byte of one file of a series that has been listed."""
    names = os.listdir(folder)
    path = folder / names[len(names) // 2]
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        found = len(file.read(1))
    return {"seconds": time.perf_counter() - start, "found": found}


def volumes(folder: Path) -> dict[str, float]:
    """Read all series of a study, each a volume."""
    import SimpleITK

    start, slices = time.perf_counter(), 0
    for series in sorted(folder.iterdir()):
        names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(series))
        slices += SimpleITK.ReadImage(names).GetSize()[2]
    return {"seconds": time.perf_counter() - start, "found": slices}


PROGRAMS: dict[str, Callable[[Path], dict[str, float]]] = {
    "headers": headers,
    "first-byte": first_byte,
    "volumes": volumes,
}

if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](Path(sys.argv[2]))))
