"""The catalogue: the IDC index as tables on disk, and views (sets of series in a layout) over them."""
