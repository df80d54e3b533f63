"""Large pages for memory that is read from end to end in every step.

Every page of 4 kB costs a look at the processor's tables, and what is asked for early stops at its end; a page of 2 MB
has 512 times as far to go. Linux gives them to whom asks (its default, "madvise"); elsewhere nothing changes.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from torch import Tensor

HUGE = 2 << 20  # bytes of a large page
_ADVICE = 14  # MADV_HUGEPAGE


@functools.cache
def _libc() -> ctypes.CDLL:
    found = ctypes.CDLL(None)
    found.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found


def in_large_pages(memory: Tensor) -> Tensor:
    """The same memory, not yet written to, for whose whole large pages the system was asked."""
    if sys.platform == "linux" and memory.device.type == "cpu":
        start = -(-memory.data_ptr() // HUGE) * HUGE
        size = (memory.data_ptr() + memory.nbytes - start) // HUGE * HUGE
        if size > 0:
            _libc().madvise(start, size, _ADVICE)  # a refusal changes nothing
    return memory
