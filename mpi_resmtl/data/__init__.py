"""Data of the classification studies: published layouts read in place, downloads, generated stand-ins. No MPI here."""
