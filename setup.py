"""Builds the compiled loops where there is a C compiler; all else about the package stands in setup.cfg."""

from setuptools import Extension, setup

try:
    import numpy
except ImportError:
    extensions = []
else:
    # No flag may change a result: machines differ, and numpy does the same sums one operation after the other. That
    # nobody looks at floating-point exceptions or errno is what lets loops with comparisons and roots be vectorised.
    flags = ["-std=c11", "-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
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
