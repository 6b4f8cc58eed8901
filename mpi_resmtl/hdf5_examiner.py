"""Reads HDF5 files to their ends, in a process of its own: `python hdf5_examiner.py FILE...`.

The HDF5 library crashes, loops or asks for any amount of memory on files that are damaged or made to harm. Here that
hurts nobody. Exit status 0: everything in the files can be read, and nothing in one leads out of it or is larger than
what it can hold; 1: it cannot or does, and standard output says what of the first such file. Imports nothing of the
package, so that it runs by its path alone.
"""

from __future__ import annotations

import os
import resource
import sys

if __name__ == "__main__":
    import mpi4py

    # h5py imports MPI where it can; this process is no rank of anything.
    mpi4py.rc.initialize = False

import h5py
import numpy as np

SECONDS, BYTES_A_SECOND = 4, 20 << 20
"""Processor time that a file may take: so much, and a second more for so many bytes."""
MEMORY = 4 << 30
"""Bytes of address space for it all, libraries included."""
OBJECTS, ATTRIBUTES, DEPTH = 100_000, 1000, 32
LARGEST_ATTRIBUTE = 4 << 20
BLOCK = 16 << 20
"""Bytes that are read at a time."""
SMALL = 1 << 20
"""Bytes that a dataset may declare whatever the file holds of it."""
EXPANSION = 1100
"""Bytes that a stored byte may become: deflate reaches 1032."""
FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "gzip",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    h5py.h5z.FILTER_LZF: "lzf",
}


class Refused(Exception):
    """What is wrong with the file, in one line."""


def main(paths: list[str]) -> int:
    """Examine the files; -> exit status."""
    seconds = sum(SECONDS + os.stat(path).st_size // BYTES_A_SECOND for path in paths)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for path in paths:
            with h5py.File(path, "r") as file:
                _walk(file, os.stat(path).st_size)
    except Refused as refused:
        print(refused)
    except MemoryError:
        print("asks for too much memory")
    except Exception as error:  # h5py raises nearly anything for what the library cannot make sense of
        print(f"not a whole HDF5 file: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    else:
        return 0
    return 1


def _walk(file: h5py.File, size: int) -> None:
    """Visit every object once, from the root on."""
    seen, waiting = set(), [(file, "/", 0, _address(file))]
    while waiting:
        item, name, depth, address = waiting.pop()
        seen.add(address)
        if len(seen) > OBJECTS:
            raise Refused(f"holds more than {OBJECTS} objects")
        _attributes(item, name)
        if isinstance(item, h5py.Dataset):
            _dataset(item, name, size)
            # Scales are found by references to places in the file, which may lead anywhere.
            for dimension in item.dims:
                for scale in dimension.values():
                    _address(scale)
        if not isinstance(item, h5py.Group):
            continue
        if depth == DEPTH:
            raise Refused(f"{name} lies {DEPTH} groups deep")
        if len(item) > OBJECTS:
            raise Refused(f"holds more than {OBJECTS} objects")
        for key in item:
            below = f"{name.rstrip('/')}/{key}"
            link = item.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                kind = {h5py.SoftLink: "a soft link", h5py.ExternalLink: "an external link"}
                raise Refused(f"{below} is {kind.get(type(link), 'a link')}, which is not followed")
            child = item[key]
            if (address := _address(child)) not in seen:
                waiting.append((child, below, depth + 1, address))


def _address(item: h5py.HLObject) -> int:
    return h5py.h5o.get_info(item.id).addr


def _attributes(item: h5py.HLObject, name: str) -> None:
    attributes = item.attrs
    if len(attributes) > ATTRIBUTES:
        raise Refused(f"{name} has more than {ATTRIBUTES} attributes")
    for key in attributes:
        bytes_ = attributes.get_id(key).get_storage_size()
        if bytes_ > LARGEST_ATTRIBUTE:
            raise Refused(f"attribute {key} of {name} has {bytes_} bytes, more than {LARGEST_ATTRIBUTE}")
        value = attributes[key]
        if isinstance(value, str | bytes) and len(value) > LARGEST_ATTRIBUTE:
            raise Refused(f"attribute {key} of {name} has {len(value)} characters, more than {LARGEST_ATTRIBUTE}")


def _dataset(item: h5py.Dataset, name: str, size: int) -> None:
    """Read it all, a block at a time, once it is clear that nothing but this file and memory for a block is needed."""
    made = item.id.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL:
        raise Refused(f"{name} is a virtual dataset, which leads to other files")
    if made.get_external_count():
        raise Refused(f"{name} keeps its values in another file")
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    for one in filters:
        if one not in FILTERS:
            raise Refused(f"{name} is packed by filter {one}; only {', '.join(FILTERS.values())} are read")
    if len(set(filters)) < len(filters):
        raise Refused(f"{name} is packed twice by the same filter")
    try:
        dtype, shape = item.dtype, item.shape
    except TypeError:  # numpy has no such type, so nobody can read it
        return
    if shape is None or dtype.kind not in "biufS":
        return
    declared, stored = dtype.itemsize * _product(shape), min(item.id.get_storage_size(), size)
    if declared > SMALL and declared > stored * (EXPANSION if filters else 1):
        raise Refused(f"{name} declares {declared} bytes, but the file holds {stored} of it")
    chunk = dtype.itemsize * _product(chunks) if (chunks := item.chunks) else 0
    if chunk > max(BLOCK, 2 * declared):
        raise Refused(f"{name} is cut in chunks of {chunk} bytes, but has {declared}")
    if 0 in shape:
        return
    if not shape:
        item[()]
        return
    row = dtype.itemsize * _product(shape[1:])
    rows = min(max(1, BLOCK // row), shape[0])
    if row > MEMORY // 4:
        raise Refused(f"{name} has rows of {row} bytes")
    buffer = np.empty((rows, *shape[1:]), dtype)
    if rows == shape[0]:
        item.id.read(h5py.h5s.ALL, h5py.h5s.ALL, buffer)
        return
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        item.read_direct(buffer, np.s_[first : first + count], np.s_[:count])


def _product(shape: tuple[int, ...]) -> int:
    """Of plain integers, which do not overflow."""
    product = 1
    for length in shape:
        product *= int(length)
    return product


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
