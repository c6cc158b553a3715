"""Readers that time themselves: ``python -m benchmarks.programs PROGRAM FOLDER`` prints the result as JSON.

Each runs in a new process, so that it has nothing in memory. The time begins when the libraries are loaded.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def headers(folder: Path) -> dict[str, float]:
    """Read all headers of a series with pydicom."""
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
    """Read each series of a study as a volume with SimpleITK."""
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
