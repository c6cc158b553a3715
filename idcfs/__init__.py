"""idcfs: the NCI Imaging Data Commons as a folder."""

__version__ = "0.2.0"
