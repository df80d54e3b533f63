import pickle

import pytest
from pydantic import Field

from schoolhouse.core import errors
from schoolhouse.core.config import (
    Duration,
    Recipe,
    Ref,
    StageConfig,
    Strict,
    format_duration,
    load_recipe,
    parse_duration,
    references,
)
from schoolhouse.core.toml import line_of

RECIPE = """\
name = "r1"
seed = 1
budget = { time = "25m" }

[machine]
threads = 2

[[stage]]
name = "base"
run = "get"
source = "somewhere"

[[stage]]
name = "rl"
run = "train.grpo"
share = 0.5
model = "base"
rate = 1e-5
exam = { items = 3, of = "base" }
"""


class Exam(Strict):
    items: int
    of: Ref | None = None


class Config(StageConfig):
    model: Ref
    rate: float = 1e-4
    exam: Exam | None = None
    others: list[Ref] = Field(default_factory=list)
    warmup: Duration | None = None


@pytest.fixture
def load(tmp_path):
    def load(text=RECIPE, *overrides):
        path = tmp_path / "r1.toml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return load


def test_a_recipe_holds_what_its_file_says(load):
    recipe = load().recipe
    assert (recipe.name, recipe.seed, recipe.budget.time, recipe.machine.threads) == ("r1", 1, 1500.0, 2)
    assert [stage.name for stage in recipe.stages] == ["base", "rl"]
    assert recipe.stages[1].share == 0.5
    assert recipe.stages[1].settings == {"model": "base", "rate": 1e-5, "exam": {"items": 3, "of": "base"}}


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("budget.time=5m", lambda r: r.budget.time == 300),
        ("seed=7", lambda r: r.seed == 7),
        ("rl.rate=0.5", lambda r: r.stages[1].settings["rate"] == 0.5),
        ("rl.exam.items=9", lambda r: r.stages[1].settings["exam"]["items"] == 9),
        ("base.source=a b", lambda r: r.stages[0].settings["source"] == "a b"),
        ('rl.others=["base"]', lambda r: r.stages[1].settings["others"] == ["base"]),
        ("machine.device=cpu", lambda r: r.machine.device == "cpu"),
    ],
)
def test_set_changes_one_value(load, override, read):
    assert read(load(RECIPE, override).recipe)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (RECIPE.replace("seed = 1", "sead = 1"), (), r"r1.toml, line 2: unknown key 'sead'; did you mean 'seed'\?"),
        (RECIPE.replace("threads", "thread"), (), r"line 6: unknown key 'thread'; did you mean 'threads'\?"),
        (RECIPE.replace('"25m"', '"soon"'), (), r"line 3: budget.time: 'soon' is no duration"),
        (RECIPE.replace('"25m"', "-3"), (), r"line 3: budget.time: .*greater than 0.*-3"),
        (RECIPE.replace("seed = 1", 'seed = "x"'), (), r"line 2: seed: .*'x'"),
        (RECIPE.replace('name = "rl"', 'name = "base"'), (), r"line 14: the stage name 'base' is already taken"),
        (RECIPE.replace('name = "rl"', 'name = "budget"'), (), r"line 14: the stage name 'budget' is already taken"),
        (RECIPE.replace('run = "get"', ""), (), r"line 8: this \[\[stage\]\] has no 'run'"),
        (RECIPE.replace("share = 0.5", "share = 2"), (), r"line 16: .*share.*2"),
        ('name = "x"\n', (), r"at least one \[\[stage\]\]"),
        ("name = \n", (), r"no valid TOML"),
        (RECIPE, ("rl.rate",), r"--set rl.rate: write it like"),
        (RECIPE, ("rk.rate=1",), r"no stage or key 'rk'; did you mean 'rl'\?"),
        (RECIPE, ("rl=1",), r"say which key"),
        (RECIPE, ("rl.rate.x=1",), r"rate is a value, not a table"),
        (RECIPE, ("budget.tine=5m",), r"--set budget.tine=5m: unknown key 'tine'; did you mean 'time'\?"),
    ],
)
def test_a_wrong_recipe_is_an_error_with_its_place(load, text, overrides, message):
    with pytest.raises(errors.RecipeError, match=message):
        load(text, *overrides)


@pytest.mark.parametrize(
    ("old", "new", "overrides", "message"),
    [
        ("rate = 1e-5", "rat = 1e-5", (), r"r1.toml, line 18: stage 'rl': unknown key 'rat'; did you mean 'rate'\?"),
        ("items = 3", "item = 3", (), r"line 19: stage 'rl': unknown key 'item'; did you mean 'items'\?"),
        ("rate = 1e-5", 'rate = "fast"', (), r"line 18: stage 'rl': rate: .*'fast'"),
        ('model = "base"', "", (), r"line 13: stage 'rl': the key 'model' is missing"),
        ("", "", ("rl.rat=3",), r"--set rl.rat=3: stage 'rl': unknown key 'rat'; did you mean 'rate'\?"),
    ],
)
def test_a_wrong_setting_of_a_stage_is_an_error_with_its_place(load, old, new, overrides, message):
    source = load(RECIPE.replace(old, new) if old else RECIPE, *overrides)
    with pytest.raises(errors.RecipeError, match=message):
        source.configure(1, Config)


def test_a_missing_recipe_names_the_nearest(load, tmp_path):
    load()
    with pytest.raises(errors.RecipeError, match=r"there is no recipe .*r2.toml; did you mean 'r1.toml'\?"):
        load_recipe(tmp_path / "r2.toml")


def test_references_are_found_in_lists_and_inner_tables():
    config = Config(model="a", exam=Exam(items=1, of="b"), others=["c", "a", "d"])
    assert references(config) == ["a", "b", "c", "d"]


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config(model="a").rate = 3


@pytest.mark.parametrize(
    ("text", "seconds"), [("25m", 1500), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("2d", 172800), (7, 7)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "25", "25 minutes", "1h x"])
def test_wrong_durations(text):
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)


def test_durations_are_written_in_the_largest_unit():
    assert [format_duration(s) for s in (1500, 7200, 90.0, 0.5)] == ["25m", "2h", "90.0s", "0.5s"]


def test_line_of_finds_the_nearest_thing():
    assert line_of(RECIPE, ("stage", 1, "exam", "items")) == 19
    assert line_of(RECIPE, ("stage", 1, "nowhere")) == 13
    assert line_of(RECIPE, ("nowhere",)) is None
    assert line_of("[[stage]]\nname = 'a'\n[stage.deep]\nkey = 1\n", ("stage", 0, "deep", "key")) == 4


@pytest.mark.parametrize("kind", [c for c in vars(errors).values() if isinstance(c, type)])
def test_errors_survive_pickling_and_say_one_thing(kind):
    again = pickle.loads(pickle.dumps(kind("what happened")))
    assert type(again) is kind
    assert str(again) == "what happened"
    assert kind.exit_code in (1, 2, 3, 130)


def test_the_law_by_example(load, tmp_path):
    recipe = load().recipe
    (tmp_path / "again.toml").write_text(recipe.dump())
    assert Recipe.load(tmp_path / "again.toml") == recipe
