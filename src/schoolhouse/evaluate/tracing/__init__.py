"""From an answer back to its sources: the parts of `evaluate/trace.py`."""
