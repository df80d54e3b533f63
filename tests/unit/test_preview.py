"""A recipe's data alone, and a first look at them that keeps nothing and names nobody."""

import json

import pytest

from schoolhouse.core.config import load_recipe
from schoolhouse.core.errors import RecipeError
from schoolhouse.pipeline import plan_recipe
from schoolhouse.preview import _raw, prepare_recipe

RECIPE = """
name = "own"
stage = [
  {{ name = "base", run = "get", source = "smollm2-135m-instruct" }},
  {{ name = "notes", run = "prepare.read", source = "{folder}" }},
  {{ name = "more", run = "prepare.synthesize", data = "notes", operators = ["lower-case"] }},
  {{ name = "taught", run = "train.sft", model = "base", data = "more" }},
]
"""


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = [{"text": f"Patient Jane Roe, visit {i}.", "id": i} for i in range(9)]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(folder=folder))
    return path


def test_only_what_prepares_is_run_and_it_is_kept(recipe, tmp_path):
    done = prepare_recipe(recipe, [], tmp_path / "runs")
    assert list(done) == ["notes", "more"]
    assert (done["notes"].meta["documents"], done["more"].meta["documents"]) == (9, 18)


def test_a_look_says_what_became_of_some_documents_and_keeps_nothing(recipe, tmp_path, capsys):
    assert prepare_recipe(recipe, [], tmp_path / "runs", look=4) == {}
    said = capsys.readouterr()
    assert "documents: 4" in said.out
    assert "documents: 8" in said.out
    assert "a look at 4 documents of each source" in said.out
    assert "Jane" not in said.out + said.err
    assert "samples are shown behind the stage prepare.redact" in said.out
    assert list((tmp_path / "runs").iterdir()) == []


def test_samples_are_shown_where_nobody_is_named(tmp_path, capsys):
    path = tmp_path / "t.toml"
    path.write_text('name = "t"\nstage = [{ name = "traces", run = "prepare.traces", tasks = ["boxes"], count = 4 }]\n')
    prepare_recipe(path, [], tmp_path / "runs", look=4)
    said = capsys.readouterr().out
    assert "conversations.jsonl:" in said
    assert "What is the stack now?" in said


def test_whatever_was_read_counts_as_naming_people_until_it_is_redacted(recipe):
    plan = plan_recipe(load_recipe(recipe))
    assert _raw(plan) == {"notes", "more", "taught"}


def test_a_recipe_that_prepares_nothing_says_so(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('name = "t"\nstage = [{ name = "base", run = "get", source = "smollm2-135m-instruct" }]\n')
    with pytest.raises(RecipeError, match="no stage of this recipe prepares data"):
        prepare_recipe(path, [], tmp_path / "runs")
