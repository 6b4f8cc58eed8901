"""Prints how many physical cores this process may use, by its CPU affinity and its cgroup's quota."""

import os
from math import ceil
from pathlib import Path

CPU = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def siblings(cpu: int) -> str:
    """The CPUs of the core of this one; itself where the system does not say."""
    path = Path(CPU.format(cpu))
    return path.read_text() if path.exists() else str(cpu)


cores = len({siblings(cpu) for cpu in os.sched_getaffinity(0)})
if QUOTA.exists():
    quota, period = QUOTA.read_text().split()
    if quota != "max":
        cores = min(cores, ceil(int(quota) / int(period)))
print(cores)
