"""Benchmarks of real mounts on loopback, one module each; `scripts/bench` runs them.

A benchmark is a generator of `Result`s over a `Workspace`, which owns all files, processes and mounts. This process
never loads pyarrow or duckdb: it would share their pages with the daemons whose memory it measures.
"""
