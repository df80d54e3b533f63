"""The rules of the house: sizes, names, words, layers, recipes."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from schoolhouse.core.config import load_recipe
from schoolhouse.pipeline import STAGES, plan_recipe

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MODULE_LINES, FUNCTION_LINES, MEDIAN_LINES, RECIPE_LINES = 500, 80, 30, 40
BAD_NAMES = {"utils.py", "util.py", "common.py", "misc.py", "helpers.py"}

# Built from halves, so that this file does not find itself.
FORBIDDEN = [
    "/" + "work/",
    "/" + "tmp/",
    "/" + "home/" + r"\w",
    "/" + "Users/",
    "farm" + "-",
    r"\b" + "TO" + "DO" + r"\b",
    r"\b" + "FIX" + "ME" + r"\b",
    r"\bissue" + r" #?\d",
    r"\bCla" + r"ude\b",
    r"\bsub" + "agent",
    r"shared/(design|spec|performance|style|ecosystem)" + r"\.md",
]
TEXT_ENDINGS = {".py", ".md", ".toml", ".txt", ".cfg", ".yaml", ".yml", ".j2", ".html", ".jinja", ".json", ".jsonl", ""}


def _tracked():
    """The files of the project: those that git knows, or, outside a clone, everything in the usual folders."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        names = listed.stdout.split("\0")
    else:
        names = [
            str(p.relative_to(ROOT)) for top in ("src", "tests", "docs", "recipes") for p in (ROOT / top).rglob("*")
        ]
    paths = [ROOT / name for name in names if name]
    return [path for path in paths if path.is_file() and path.suffix in TEXT_ENDINGS]


def _functions():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT / 'src')}:{node.lineno} {node.name}"


def test_modules_and_functions_stay_small(capsys):
    modules = sorted(((len(path.read_text(encoding="utf-8").splitlines()), path) for path in SOURCES), reverse=True)
    functions = sorted(_functions(), reverse=True)
    middle = median(lines for lines, _ in functions)
    with capsys.disabled():
        print(f"\n{len(modules)} modules, {sum(n for n, _ in modules)} lines, median function {middle:g} lines")
        for lines, path in modules[:8]:
            print(f"  {lines:>4} {path.relative_to(ROOT / 'src')}")
        for lines, where in functions[:8]:
            print(f"  {lines:>4} {where}")
    assert [(n, str(path)) for n, path in modules if n > MODULE_LINES] == []
    assert [(n, where) for n, where in functions if n > FUNCTION_LINES] == []
    assert middle <= MEDIAN_LINES


def test_no_module_is_a_drawer_for_odds_and_ends():
    assert [str(path) for path in SOURCES if path.name in BAD_NAMES] == []


def test_the_project_speaks_only_of_itself():
    wrong = []
    for path in _tracked():
        text = path.read_text(encoding="utf-8", errors="replace")
        for words in FORBIDDEN:
            wrong += [f"{path.relative_to(ROOT)}: {found.group()}" for found in re.finditer(words, text)]
    assert wrong == []


def test_no_file_is_pickled_and_the_network_is_left_to_get():
    wrong = []
    for path in SOURCES:
        name = path.relative_to(ROOT / "src" / "schoolhouse").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for imported in names:
                top = imported.split(".")[0]
                if top in ("pickle", "dill", "joblib", "shelve", "marshal"):
                    wrong.append(f"{name} imports {imported}")
                if top in ("socket", "urllib", "requests", "httpx", "http", "ftplib") and not name.startswith("get/"):
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_is_short_and_right(path, monkeypatch):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= RECIPE_LINES
    monkeypatch.chdir(ROOT)
    assert len(plan_recipe(load_recipe(path)).stages) == len(load_recipe(path).recipe.stages)


@pytest.mark.parametrize("module", STAGES.values())
def test_every_stage_that_a_recipe_may_name_exists(module):
    code = f"import {module} as m; from schoolhouse.core.config import StageConfig as C; assert issubclass(m.Config, C)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_imports_only_go_down():
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
