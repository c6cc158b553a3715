"""A mount: the FUSE adapter, the daemon behind it, its signals, and the mountpoints of a machine."""
