"""Few shapes: what is multiplied comes in rows of a multiple of a grid.

oneDNN compiles and keeps a kernel for every shape that it meets. Ever new lengths cost a millisecond each, and half a
megabyte that scatters over the heap and doubles the memory of a run (docs/lab-log.md, 2026-11-23).
"""

from __future__ import annotations

GRID = 32


def filler(rows: int, grid: int = GRID) -> int:
    """Number of rows to add to so many, which nobody reads."""
    return -rows % grid
