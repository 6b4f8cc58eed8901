"""Byzantine-resilient distributed multi-task learning on MPI ranks."""

__version__ = "0.1.0"
