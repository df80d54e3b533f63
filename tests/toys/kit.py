"""Short cuts for the tests that run toy recipes."""

import os
import subprocess
import sys
from pathlib import Path

from schoolhouse.pipeline import run_recipe
from toys import STAGES

TESTS = Path(__file__).parent.parent
RECIPE = """\
name = "toy"
seed = 3

[[stage]]
name = "base"
run = "toy.source"

[[stage]]
name = "climb"
run = "toy.learn"
source = "base"
steps = 8

[[stage]]
name = "report"
run = "toy.gather"
models = ["base", "climb"]
"""


def write_recipe(folder, text=RECIPE):
    path = folder / "toy.toml"
    path.write_text(text)
    return path


def run_here(path, home, *overrides, **more):
    return run_recipe(path, overrides, home, stages=STAGES, **more)


def start_process(path, home, *overrides, fail_at="", **more):
    env = os.environ | {"PYTHONPATH": str(TESTS), "SCHOOLHOUSE_FAIL_AT": fail_at}
    command = [sys.executable, "-m", "toys", str(path), str(home), *overrides]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def contents(done):
    """The parts of a run's result that must not depend on how it came about."""
    return {name: (artifact.id, artifact.manifest["files"]) for name, artifact in done.items()}
