"""The kernel's page cache of a mount, filled ahead of readers."""
