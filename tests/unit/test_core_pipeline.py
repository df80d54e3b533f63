import json

import pytest

import toys.source
from schoolhouse.core.artifact import Store
from schoolhouse.core.errors import ArtifactError, BudgetError, DataError, MachineError, RecipeError, TrainError
from schoolhouse.core.ledger import Ledger
from schoolhouse.pipeline import run_recipe
from toys.kit import RECIPE, contents, run_here, write_recipe


def test_a_recipe_runs_once_and_is_then_kept(tmp_path, capsys):
    path, home = write_recipe(tmp_path), tmp_path / "runs"
    first = run_here(path, home)
    printed = capsys.readouterr()
    assert "8/8" in printed.err
    assert "1,234 tok/s" in printed.err
    for word in ("base", "climb", "report", "made", "Wh", "EUR", first["climb"].id):
        assert word in printed.out
    again = run_here(path, home)
    printed = capsys.readouterr()
    assert contents(again) == contents(first)
    assert "8/8" not in printed.err
    assert "kept" in printed.out
    assert "made" not in printed.out.replace("made_at", "")


def test_the_home_folder_holds_what_a_person_looks_for(tmp_path):
    path, home = write_recipe(tmp_path), tmp_path / "runs"
    done = run_here(path, home)
    assert json.loads((home / "toy" / "latest.json").read_text()) == {name: a.id for name, a in done.items()}
    assert (home / "toy" / "report.html").read_text() == "<p>base: 0 steps<br>climb: 8 steps"
    events = [json.loads(line) for line in (home / "toy" / "log.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["done"] for event in steps] == list(range(1, 9))
    assert steps[-1] == steps[-1] | {"stage": "climb", "total": 8, "loss": 0.125, "tok_s": 1234.5}


def test_the_manifest_says_what_it_was_made_from_and_what_it_used(tmp_path):
    done = run_here(write_recipe(tmp_path), tmp_path / "runs")
    climb = done["climb"]
    assert climb.kind == "toy.learn"
    assert climb.parents == [done["base"].id]
    assert climb.meta["config"]["steps"] == 8
    assert climb.meta["seed"] == 3
    meter = climb.meta["meter"]
    assert meter["tokens"] == 80
    assert meter["peak_rss_bytes"] > 1_000_000
    assert meter["energy_source"].startswith(("modelled: assumed 10 W", "measured"))


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ([], set()),
        (["climb.steps=9"], {"climb", "report"}),
        (["base.size=1001"], {"base", "climb", "report"}),
        (["seed=4"], {"base", "climb", "report"}),
        (["machine.threads=1"], set()),
    ],
)
def test_only_what_depends_on_a_change_is_made_again(tmp_path, overrides, changed):
    path, home = write_recipe(tmp_path), tmp_path / "runs"
    before, after = run_here(path, home), run_here(path, home, *overrides)
    assert {name for name in before if before[name].id != after[name].id} == changed


def test_a_changed_outside_file_makes_its_stage_again(tmp_path):
    outside = tmp_path / "questions.jsonl"
    outside.write_text("one")
    path = write_recipe(tmp_path, RECIPE.replace('"toy.source"', f'"toy.source"\nfile = "{outside}"'))
    first = run_here(path, tmp_path / "runs")
    outside.write_text("two")
    assert run_here(path, tmp_path / "runs")["base"].id != first["base"].id


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"toy.learn"',
            '"toy.lern"',
            r"line 10: stage 'climb': there is no stage 'toy.lern'; did you mean 'toy.learn'\?",
        ),
        ("steps = 8", "stepz = 8", r"line 12: stage 'climb': unknown key 'stepz'; did you mean 'steps'\?"),
        ('source = "base"', 'source = "bass"', r"line 11: .*no stage 'bass' above it; did you mean 'base'\?"),
        ('source = "base"', 'source = "report"', r"line 11: .*'report' comes later"),
        ('["base", "climb"]', '["base", "clim"]', r"line 17: .*no stage 'clim' above it; did you mean 'climb'\?"),
        ("steps = 8", "share = 0.5", r"line 12: a share needs a budget"),
        ('name = "toy"', 'name = "store"', r"line 1: a recipe cannot be called 'store'"),
    ],
)
def test_a_wrong_recipe_starts_nothing(tmp_path, old, new, message):
    with pytest.raises(RecipeError, match=message):
        run_here(write_recipe(tmp_path, RECIPE.replace(old, new)), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_failed_check_starts_nothing_and_names_the_stage(tmp_path):
    text = RECIPE.replace('"toy.source"', '"toy.source"\nfile = "nowhere.jsonl"')
    with pytest.raises(DataError, match=r"toy.toml, line 4: stage 'base': there is no file nowhere.jsonl"):
        run_here(write_recipe(tmp_path, text), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_too_little_memory_is_said_before_anything_starts(tmp_path):
    path = write_recipe(
        tmp_path, RECIPE + '\n[[stage]]\nname = "big"\nrun = "toy.source"\nmemory = 1_000_000_000_000_000\n'
    )
    with pytest.raises(
        MachineError, match=r"stage 'big' .*needs about 931322.6 GiB of memory, and \d+.\d GiB are free"
    ):
        run_here(path, tmp_path / "runs")
    assert Store(tmp_path / "runs" / "store").all() == []


def test_a_stage_that_fails_is_named_and_the_others_are_kept(tmp_path):
    path, home = write_recipe(tmp_path), tmp_path / "runs"
    with pytest.raises(TrainError, match="stage 'climb': the loss is not a number"):
        run_here(path, home, "climb.fail=error")
    with pytest.raises(MachineError, match="stage 'climb' ran out of memory"):
        run_here(path, home, "climb.fail=memory")
    assert [artifact.kind for artifact in Store(home / "store").all()] == ["toy.source"]
    assert [run["status"] for run in Ledger(f"sqlite:///{home / 'ledger.sqlite'}").runs()] == ["failed", "failed"]
    assert set(run_here(path, home)) == {"base", "climb", "report"}


def test_a_share_of_the_time_ends_a_stage_cleanly(tmp_path):
    text = RECIPE.replace("seed = 3", "seed = 3\nbudget = { time = 3 }")
    text = text.replace("steps = 8", "steps = 100000\npause_s = 0.02\nshare = 0.2")
    done = run_here(write_recipe(tmp_path, text), tmp_path / "runs")
    assert done["climb"].meta["ended"] == "budget"
    assert 1 < done["climb"].meta["steps"] < 31
    book = Ledger(f"sqlite:///{tmp_path / 'runs' / 'ledger.sqlite'}")
    assert book.runs()[0]["status"] == "done"


def test_when_the_time_is_spent_the_next_stage_does_not_start(tmp_path):
    path, home = (
        write_recipe(tmp_path, RECIPE.replace("steps = 8", "steps = 100000\npause_s = 0.02")),
        tmp_path / "runs",
    )
    with pytest.raises(
        BudgetError, match=r"the time of the recipe is spent .* 'report' .*--set budget.time=0.8s"
    ) as caught:
        run_here(path, home, "budget.time=0.4")
    assert caught.value.exit_code == 3
    with pytest.raises(BudgetError):
        run_here(path, home, "budget.time=0.4")
    done = run_here(path, home, "budget.time=1m")
    assert done["climb"].meta["ended"] == "budget"
    assert [run["status"] for run in Ledger(f"sqlite:///{home / 'ledger.sqlite'}").runs()].count("budget spent") == 2


def test_a_stage_that_closes_the_recipe_runs_when_the_time_is_spent(tmp_path, monkeypatch):
    monkeypatch.setattr("toys.gather.CLOSES", True, raising=False)
    text = RECIPE.replace("steps = 8", "steps = 100000\npause_s = 0.02")
    done = run_here(write_recipe(tmp_path, text), tmp_path / "runs", "budget.time=0.4")
    assert "steps" in done["report"].file("report.html").read_text()


def test_a_share_gives_way_to_what_took_long_before_and_to_the_shares_after_it(tmp_path):
    climb = '[[stage]]\nname = "{0}"\nrun = "toy.learn"\nsource = "base"\nsteps = {1}\npause_s = 0.05\n{2}\n'
    stages = [climb.format("slow", 24, ""), climb.format("early", 10**6, "share = 0.7")]
    stages.append(climb.format("late", 10**6, "share = 0.3"))
    text = 'name = "toy"\nbudget = { time = 4 }\n[[stage]]\nname = "base"\nrun = "toy.source"\n' + "".join(stages)
    done = run_here(write_recipe(tmp_path, text), tmp_path / "runs")
    took = {name: artifact.meta["meter"]["seconds"] for name, artifact in done.items()}
    assert took["slow"] > 1.2
    assert took["early"] < 2.2, "0.7 of 4 seconds, less what the first took and what the last is to have"
    assert took["late"] > 0.5


def test_a_dry_run_prints_the_plan_and_makes_nothing(tmp_path, capsys):
    path, home = write_recipe(tmp_path), tmp_path / "runs"
    assert run_here(path, home, dry_run=True) == {}
    printed = capsys.readouterr().out
    assert "to be made" in printed
    assert "toy.gather" in printed
    assert not home.exists()
    run_here(path, home)
    capsys.readouterr()
    run_here(path, home, "climb.steps=9", dry_run=True)
    assert "exists" in capsys.readouterr().out


def test_a_damaged_artifact_is_said_with_what_to_do(tmp_path):
    path, home = write_recipe(tmp_path), tmp_path / "runs"
    base = run_here(path, home)["base"]
    manifest = base.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("toy.source", "toy.sauce"))
    with pytest.raises(ArtifactError, match=r"was changed or is damaged; delete .* and run the recipe again"):
        run_here(path, home)


def test_nothing_learns_from_what_was_redacted_too_badly_not_even_at_second_hand(tmp_path, monkeypatch):
    figures = {"recall": {"name": [97, 100], "id": [9, 9]}, "reviewed": None, "threshold": 0.98}
    make = toys.source.run

    def redact(config, inputs, run, out):
        make(config, inputs, run, out)
        out.meta["redaction"] = figures

    monkeypatch.setattr("toys.source.run", redact)
    learner = '\n[[stage]]\nname = "learner"\nrun = "train.toy"\nmodels = ["report"]\n'
    path, stages = write_recipe(tmp_path, RECIPE + learner), toys.STAGES | {"train.toy": "toys.gather"}
    with pytest.raises(DataError, match=r"stage 'learner': the data were redacted, .*recall of name: 0\.970"):
        run_recipe(path, home=tmp_path / "runs", stages=stages)
    assert set(json.loads((tmp_path / "runs" / "toy" / "latest.json").read_text())) == {"base", "climb", "report"}
    figures["threshold"] = 0.97
    assert "learner" in run_recipe(path, home=tmp_path / "again", stages=stages)
