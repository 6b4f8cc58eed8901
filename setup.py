"""Builds the compiled loops where there is a C compiler; all else about the package stands in setup.cfg."""

from setuptools import Extension, setup

try:
    import numpy
except ImportError:
    extensions = []
else:
    # No flag may change a result: numpy does the same sums without fused operations, and machines differ.
    flags = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-fast-math"]
    extensions = [
        Extension(
            "mpi_resmtl._loops",
            ["mpi_resmtl/_loops.c"],
            include_dirs=[numpy.get_include()],
            extra_compile_args=flags,
            optional=True,
        )
    ]

setup(ext_modules=extensions)
