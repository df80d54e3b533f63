"""Every command, recipe and link in the documentation exists and is spelt as the program wants it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(?:sh|bash|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def _commands(page):
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


COMMANDS = sorted({(page.name, *words) for page in PAGES for words in _commands(page)})


@pytest.mark.parametrize("words", [c[1:] for c in COMMANDS if c[1].endswith("schoolhouse")], ids=" ".join)
def test_every_documented_schoolhouse_command_is_one(words):
    verb = words[1] if len(words) > 1 and not words[1].startswith("-") else ""
    command = [sys.executable, "-m", "schoolhouse.cli", *filter(None, [verb]), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    for option in (word.split("=")[0] for word in words[2:] if word.startswith("--")):
        assert option in done.stdout, f"`schoolhouse {verb}` has no {option}"


@pytest.mark.parametrize("words", [c[1:] for c in COMMANDS if c[1] == "make"], ids=" ".join)
def test_every_documented_make_target_exists(words):
    targets = [word for word in words[1:] if "=" not in word]
    subprocess.run(["make", "-n", "-C", str(ROOT), *targets], check=True, capture_output=True, timeout=60)


def test_every_documented_recipe_and_script_exists():
    missing = [
        (page, word)
        for page, *words in COMMANDS
        for word in words
        if re.match(r"(recipes|bench|docs|tests)/[\w./-]+$", word) and not (ROOT / word).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_inside_the_project_leads_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert missing == []
