"""Distillation from end to end on tiny pupils: the apprentice comes to say what its master says."""

import json

import pytest
import torch

from school import (
    QUESTIONS,
    artifact,
    conversation,
    draft,
    fp32_run,
    metrics,
    write_bytes,
    write_colours,
    write_data,
    write_pupil,
)
from schoolhouse.core.config import references
from schoolhouse.core.errors import RecipeError, Stopped
from schoolhouse.kernels.divergence import divergence_plain
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.load import load_tasks
from schoolhouse.tasks.task import SYSTEM_THINKING
from schoolhouse.text.chat import ChatFormat
from schoolhouse.train import distill, sft


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("task"))


def taught(folder, colours, **changes):
    """A pupil that answers with one of these, one as likely as the other."""
    base = artifact(write_bytes(write_pupil(folder / "base", **changes)))
    rows = write_data(folder / "rows", [conversation(q, c, SYSTEM_THINKING) for q in QUESTIONS for c in colours])
    config = sft.Config(model="base", data="rows", epochs=120, batch=8, lr=1e-2)
    out = draft(folder / "out")
    sft.run(config, {"base": base, "rows": rows}, fp32_run(folder), out)
    return artifact(out.path)


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """It says blue."""
    return taught(tmp_path_factory.mktemp("master"), ["blue", "blue"])


@pytest.fixture(scope="module")
def apprentice(tmp_path_factory):
    """A narrower one that knows the form of a reply, and says red as often as blue."""
    return taught(tmp_path_factory.mktemp("apprentice"), ["red", "blue"], intermediate_size=32)


def settings(task, **changes):
    plain = {
        "model": "own", "master": "master", "tasks": [task], "steps": 40, "prompts": 8, "lr": 2e-3,
        "max_new_tokens": 70, "part_tokens": 512,
    }  # fmt: skip
    return distill.Config(**plain | changes)


def learn(own, master, task, folder, run=None, **changes):
    out = draft(folder / "out")
    distill.run(settings(task, **changes), {"own": own, "master": master}, run or fp32_run(folder), out)
    return out


@pytest.mark.parametrize("divergence", ["reverse", "forward", "jsd"])
def test_from_the_masters_replies_the_apprentice_learns_its_answer(apprentice, master, task, tmp_path, divergence):
    out = learn(apprentice, master, task, tmp_path, speaker="master", divergence=divergence)
    rows = metrics(out.path)
    assert rows[0]["accuracy"] > 0.9  # it is the master who speaks
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert load_model(out.path).config.intermediate_size == 32


def test_from_its_own_replies_it_comes_to_say_what_the_master_says(apprentice, master, task, tmp_path):
    out = learn(apprentice, master, task, tmp_path, steps=60)
    rows = metrics(out.path)
    assert rows[0]["accuracy"] < 0.8
    assert sum(row["accuracy"] for row in rows[-5:]) / 5 > 0.8
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]


def test_the_loss_is_the_mean_divergence_over_the_replies_tokens(apprentice, master, task, tmp_path):
    own, above, chat = load_model(apprentice.path), load_model(master.path), ChatFormat.load(apprentice.path)
    config = settings(task, part_tokens=200)
    tasks = {t.name: t for t in load_tasks(config.tasks)}
    lessons = distill.Lessons(config, own, chat, tasks, fp32_run(tmp_path))
    (parts,) = lessons.batch(0).updates
    assert len(parts) > 1
    objective = distill.MasterObjective({"master": above}, "reverse")
    got = sum(float(objective(own, part)[0].detach()) for part in parts)
    total, count = 0.0, 0
    for group in lessons._sampler.rollouts(0, lessons._level).groups:
        for sample in group.samples:
            text = torch.tensor([group.prompt + sample.ids])
            with torch.inference_mode():
                both = [m(text).logits[0, len(group.prompt) - 1 : -1] for m in (own, above)]
            total += float(divergence_plain(*both, "reverse").sum())
            count += len(sample.ids)
    assert got == pytest.approx(total / count, rel=1e-4)


def test_of_several_masters_each_corrects_its_own_task(apprentice, master, tmp_path):
    for name, asked in (("first", QUESTIONS[:4]), ("second", QUESTIONS[4:])):
        rows = [{"question": q, "answer": "blue", "split": "train" if i else "test"} for i, q in enumerate(asked)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"task": str(tmp_path / f"{name}.jsonl"), "verifier": "exact"} for name in ("first", "second")]
    config = distill.Config(
        model="own", master=["a", "b"], tasks=tasks, prompts=12, steps=3, lr=1e-3, max_new_tokens=70, part_tokens=512
    )
    own, chat = load_model(apprentice.path), ChatFormat.load(apprentice.path)
    masters = {"a": load_model(master.path), "b": load_model(write_bytes(write_pupil(tmp_path / "other", 9)))}
    lessons = distill.Lessons(config, own, chat, {t.name: t for t in load_tasks(config.tasks)}, fp32_run(tmp_path))
    (parts,) = lessons.batch(0).updates
    objective = distill.MasterObjective(masters, "reverse")
    got = {name: sum(float(objective(own, p)[0].detach()) for p in parts if p.master == name) for name in masters}
    wanted, count = dict.fromkeys(masters, 0.0), 0
    for group in lessons._sampler.rollouts(0, lessons._level).groups:
        name = {"first": "a", "second": "b"}[group.task]
        for sample in group.samples:
            text = torch.tensor([group.prompt + sample.ids])
            with torch.inference_mode():
                both = [m(text).logits[0, len(group.prompt) - 1 : -1] for m in (own, masters[name])]
            wanted[name] += float(divergence_plain(*both, "reverse").sum())
            count += len(sample.ids)
    assert got == {name: pytest.approx(total / count, rel=1e-4) for name, total in wanted.items()}
    assert min(got.values()) > 0
    inputs = {"own": apprentice, "a": master, "b": artifact(tmp_path / "other")}
    out = draft(tmp_path / "out")
    distill.run(config, inputs, fp32_run(tmp_path / "run"), out)
    first = metrics(out.path)[0]
    assert first["loss"] == pytest.approx(first["from a"] + first["from b"], rel=1e-4)


def test_a_recipe_may_name_one_master_or_several():
    one, two = (distill.Config(model="m", master=master, tasks=["boxes", "arithmetic"]) for master in ("a", ["a", "b"]))
    assert references(one) == ["m", "a"]
    assert references(two) == ["m", "a", "b"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"master": ["a", "b"]}, "2 masters for 1 tasks"), ({"master": ["a"], "speaker": "master"}, "do not speak")],
)
def test_masters_that_do_not_fit_are_refused(task, settings, words):
    with pytest.raises(RecipeError, match=words):
        distill.check(distill.Config(**{"model": "m", "tasks": [task]} | settings))


def test_interrupted_it_goes_on_to_the_same_bits(apprentice, master, task, tmp_path):
    whole = learn(apprentice, master, task, tmp_path / "whole", steps=4)
    run = fp32_run(tmp_path / "cut")
    say = run.log.step

    def press(done, total=None, **figures):
        say(done, total, **figures)
        if done == 2:
            run.interrupted.set()

    run.log.step = press
    with pytest.raises(Stopped, match="after step 2"):
        learn(apprentice, master, task, tmp_path / "cut", run, steps=4)
    out = learn(apprentice, master, task, tmp_path / "cut", steps=4)
    assert (out.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


def test_other_ids_are_refused_and_never_learnt(apprentice, task, tmp_path):
    other = artifact(write_pupil(tmp_path / "other"))  # whole words, not bytes
    with pytest.raises(RecipeError, match="different vocabularies"):
        learn(apprentice, other, task, tmp_path)
    longer = artifact(write_bytes(write_pupil(tmp_path / "longer", vocab_size=520)))
    with pytest.raises(RecipeError, match="head has 520 rows"):
        learn(apprentice, longer, task, tmp_path)


def test_numbers_that_do_not_fit_are_found_before_the_start(task):
    with pytest.raises(RecipeError, match="one number above 0 for each of the 1 tasks"):
        distill.check(settings(task, weights=[1.0, 2.0]))
