"""idcfs: the NCI Imaging Data Commons as a folder."""

__version__ = "0.1.0"
