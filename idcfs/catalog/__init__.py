"""The catalogue: the IDC index as tables on disk, and views (sets of series in a layout) over these tables.

    index                  parquet files, of idc-index-data or in a folder
      │ build              sorts and joins them with DuckDB, in a child process
      ▼
    series.arrow, views/   Arrow files, which `table` reads in verified batches
      │ view               finds the names, children and series of one view
      ▼
    catalogue              the open tables of an index; `temporary` has the views of cohorts

`query` runs a user's SQL in a child process that `sandbox` and `landlock` confine; `check` looks for damage. The rooms
after `catalog` may import it. A `Catalogue` owns the tables that it has open and belongs to the event loop. The files
are shared by all mounts and commands that use the cache folder, which change them under a lock only.
"""
