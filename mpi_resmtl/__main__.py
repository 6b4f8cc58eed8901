"""`python -m mpi_resmtl`: the same as the command `mpi-resmtl`."""

from mpi_resmtl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
