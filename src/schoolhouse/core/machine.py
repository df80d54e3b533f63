"""What this process may use of the machine: its cores and its memory, container limits counted."""

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, cut by the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no cgroup v2: the affinity is all there is to know
    return cores


def memory_bytes() -> int:
    """Return the bytes of memory of this machine, cut by the container's limit: always the same number."""
    whole = int(psutil.virtual_memory().total)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        return whole if limit == "max" else min(whole, int(limit))
    except (OSError, ValueError):
        return whole  # no cgroup v2


def available_memory_bytes() -> int:
    """Return the bytes that this process can still take without swapping, cut by the container's limit."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
            used = int((_CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError, KeyError):
        pass  # no cgroup v2: the whole machine's figure is all there is to know
    return free
