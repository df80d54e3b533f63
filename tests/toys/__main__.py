"""`python -m toys RECIPE HOME [OVERRIDE ...]`: the recipe runner with the toy stages, as a process to kill."""

import sys
from pathlib import Path

from schoolhouse.core.errors import SchoolhouseError
from schoolhouse.pipeline import run_recipe
from toys import STAGES

try:
    run_recipe(Path(sys.argv[1]), sys.argv[3:], Path(sys.argv[2]), stages=STAGES)
except SchoolhouseError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
