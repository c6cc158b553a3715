"""The tree that a mount shows: looked up, listed, read and written; knows no FUSE.

    FileSystem.find(inode number) ──▶ (provider, address), by the kind of the address and its facet
      │
      ├── Instances               files in the folders of series: listings, and a reader of bytes
      ├── Views                   folders, down to those of series
      ├── Control                 `.idc`, and what `control_files` adds to it: a function for each entry
      └── CohortsFolder           `cohorts/`
          └── CohortFolder        a cohort: the first level of its view
              └── Query, MadeFile `.query`, `.error`, `.summary`

A `Provider` has the same methods for every part of the tree, so whoever calls one needs no case for any part. `wiring`
builds all of it from settings, an index and a store. Imports the rooms above it; `mount` and `cli` may import it. What
is kept here (open files and folders, drafts of queries) belongs to `FileSystem` and its providers, in the event loop.
"""
