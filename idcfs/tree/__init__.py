"""The tree: look up, list, read; knows no FUSE."""
