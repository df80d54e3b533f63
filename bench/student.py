"""The mean of a few seeds with its 95% interval; imported by the benchmarks beside it."""

from __future__ import annotations

import math
import statistics

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's distribution, by number of values


def half_width(values: list[float]) -> float | None:
    """Half of the 95% interval of the values' mean; None for a number of them that the table lacks."""
    if len(values) not in T_975:
        return None
    return T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
