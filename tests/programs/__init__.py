"""Small programs that tests of `idcfs.processes` run as children."""
