"""A mount: the kernel's requests on one side, the tree on the other.

    kernel ──▶ fuse: Adapter ──▶ tree
               daemon             opens the tree, mounts, serves, closes; `signals` unmount, `stacks` shows tasks
               connection         the kernel's limits for this mount
               crawlers           programs that get nothing from a mirror
    commands ─▶ mountpoint        the mountpoints of this machine; loads no pyfuse3

Imports the rooms above it; only `cli` may import it. All of it runs in the event loop of the daemon, which owns its
state, but `mountpoint`, which is synchronous and keeps nothing.
"""
