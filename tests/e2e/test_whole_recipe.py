"""The quickstart's seven stages on a tiny random model, from one recipe, twice; and a task of one's own."""

import json

import pytest

from school import write_pupil
from schoolhouse.core.errors import RecipeError
from schoolhouse.pipeline import run_recipe

RECIPE = """\
name = "smoke"
[machine]
device = "cpu"
dtype = "float32"
threads = 1
[[stage]]
name = "base"
run = "get"
source = "{source}"
licence = "Apache-2.0"
[[stage]]
name = "traces"
run = "prepare.traces"
tasks = ["boxes", "arithmetic"]
count = 24
[[stage]]
name = "cold-start"
run = "train.sft"
model = "base"
data = "traces"
epochs = 4
lr = 3e-3
[[stage]]
name = "rl"
run = "train.grpo"
model = "cold-start"
tasks = ["boxes", "arithmetic"]
steps = 2
prompts = 3
group = 4
max_new_tokens = 24
[[stage]]
name = "rl-int8"
run = "compress.quantize"
model = "rl"
[[stage]]
name = "exam"
run = "evaluate.exam"
models = ["base", "cold-start", "rl", "rl-int8"]
tasks = ["boxes", "arithmetic"]
items = 16
items_base = 16
items_direct = 8
max_new_tokens = 16
max_new_tokens_direct = 8
[[stage]]
name = "report"
run = "evaluate.report"
exam = "exam"
runs = ["cold-start", "rl", "exam"]
claim = {{ better = "rl", task = "boxes", levels = {{ "4-3" = 50 }} }}
"""


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """The recipe and what it made."""
    folder = tmp_path_factory.mktemp("smoke")
    source = write_pupil(folder / "pupil")
    recipe = folder / "smoke.toml"
    recipe.write_text(RECIPE.format(source=source))
    return recipe, folder / "runs", run_recipe(recipe, [], folder / "runs")


def test_every_stage_leaves_a_whole_artifact_that_names_its_parents(school):
    _, _, done = school
    assert list(done) == ["base", "traces", "cold-start", "rl", "rl-int8", "exam", "report"]
    for artifact in done.values():
        artifact.verify()
    assert done["rl-int8"].parents == [done["rl"].id]
    assert done["cold-start"].meta["meter"]["tokens"] > 0


def test_the_cold_start_lowered_the_loss(school):
    _, _, done = school
    losses = [json.loads(line)["loss"] for line in done["cold-start"].file("metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]


def test_a_claim_that_was_not_met_is_reported_as_failed(school):
    _, _, done = school
    assert "failed" in done["report"].file("report.html").read_text().lower()
    exam = json.loads(done["exam"].file("exam.json").read_text())
    assert set(exam["models"]) == {"base", "cold-start", "rl", "rl-int8"}


def test_what_was_trained_loads_in_transformers(school):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(school[2]["rl"].path)
    assert sum(p.numel() for p in model.parameters()) == school[2]["rl"].meta["num_params"]


def test_the_second_run_makes_nothing(school):
    recipe, home, done = school
    made = {name: (artifact.path / "manifest.json").stat().st_mtime_ns for name, artifact in done.items()}
    again = run_recipe(recipe, [], home)
    assert {name: (a.path / "manifest.json").stat().st_mtime_ns for name, a in again.items()} == made


def test_a_wrong_key_stops_it_before_anything_starts(school):
    recipe, home, _ = school
    with pytest.raises(RecipeError, match="grop"):
        run_recipe(recipe, ["rl.grop=4"], home)
