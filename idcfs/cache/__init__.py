"""Bytes and listings on disk, kept between mounts and shared by them.

    event loop                     cache server, one child process
    Cache (objects)  ──┐           ┌── Entries ── EntryDatabase (diskcache, SQLite), files of entries
    Cache (listings) ──┴── Pool ═══┴── Entries ── ...

A cache that fails makes reads slower, and never wrong: nothing is found, nothing is kept, and `Cache.failure` reports
why. Values go through the arena. `upkeep` checks and sweeps a cache folder beside those who use it.

May be imported by the rooms below; imports the foundations and `processes`. The server owns the databases,
and `open_caches` owns the server.
"""
