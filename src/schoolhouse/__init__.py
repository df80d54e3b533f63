"""Schoolhouse: the whole education of a language model under one roof."""

import os

__version__ = "0.1.0"

# A thread that waits for the others spins before it sleeps: by default so long that two processes on the same cores
# keep each other from working, each at a thirtieth of its speed (docs/lab-log.md, 2026-11-28). Read when torch loads.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
