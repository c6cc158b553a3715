"""A demo of the Imaging Data Commons that needs no network: a folder mirror of synthetic DICOM objects.

Contract: `write_demo_mirror` fills a folder in the buckets' layout for the fixed series in
`idcfs.demo.selection`. Identifiers and dates are those of the index, so that every view and cohort finds
them; pixels, contours and texts are made up and say so. Two runs write the same bytes.
"""

from idcfs.demo.folder import temporary_folder
from idcfs.demo.mirror import DemoSummary, write_demo_mirror

__all__ = ["DemoSummary", "temporary_folder", "write_demo_mirror"]
