"""What docs/papers.md and ARCHITECTURE.md name exists, and nothing is missing there. No module is imported for it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ROOT / "src" / "schoolhouse"
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
SYMBOLS = sorted(set(re.findall(r"`([\w/]+\.py): (\w+)`", PAGE)))
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


@pytest.mark.parametrize(("module", "name"), SYMBOLS)
def test_every_named_symbol_exists(module, name):
    tree = ast.parse((CODE / module).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_row_names_a_symbol():
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line and "symbol |" not in line]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`[\w/]+\.py: \w+`", row)] == []


def test_every_paper_that_the_code_cites_is_in_the_table():
    cited = {number for path in CODE.rglob("*.py") for number in ARXIV.findall(path.read_text(encoding="utf-8"))}
    assert cited
    assert cited - set(ARXIV.findall(PAGE)) == set()


ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("file", "name"), sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ARCHITECTURE))))
def test_every_proof_that_the_architecture_names_exists(file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_module_has_its_line_in_the_architecture():
    modules = {path.relative_to(CODE).as_posix() for path in CODE.rglob("*.py") if path.name != "__init__.py"}
    modules = {module for module in modules if "migrations" not in module}
    named = set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE.split("## Eight abstractions")[0]))
    assert modules == named
