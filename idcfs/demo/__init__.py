"""The demo: a folder mirror of synthetic DICOM objects, for a mount that needs no network.

`write_demo_mirror` writes the series of `selection` in the layout of the buckets. Identifiers and dates are those of
the index, so that every view and cohort finds the objects; pixels, contours and texts are made up and say so. Two runs
write the same bytes. The rooms after `demo` may import it. It is synchronous and keeps nothing in memory.
"""

from idcfs.demo.folder import temporary_folder
from idcfs.demo.mirror import DemoSummary, write_demo_mirror

__all__ = ["DemoSummary", "temporary_folder", "write_demo_mirror"]
