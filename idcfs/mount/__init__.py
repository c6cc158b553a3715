"""A mount: the FUSE adapter, the daemon that runs it, its signals, and the mountpoints of this machine."""
