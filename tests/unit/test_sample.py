"""Rejection sampling from end to end on a tiny pupil: what is kept, what is not, and that it goes on where it was."""

import doctest
import json
from dataclasses import replace

import pytest

from school import QUESTIONS, artifact, draft, fp32_run
from schoolhouse.core.errors import BudgetError, DataError, RecipeError, Stopped
from schoolhouse.text.records import CONVERSATIONS, read_conversations
from schoolhouse.train import sample, sft
from schoolhouse.train.rollout import KEPT, Group, Sample
from schoolhouse.train.sample import Harvest


def settings(task, **changes):
    plain = {"model": "start", "tasks": [task], "rounds": 2, "prompts": 4, "group": 6, "max_new_tokens": 70}
    return sample.Config(**plain | changes)


def draw(starter, task, folder, run=None, inputs=None, **changes):
    out = draft(folder / "out")
    sample.run(settings(task, **changes), {"start": starter} | (inputs or {}), run or fp32_run(folder), out)
    return out


def test_the_example_in_the_docstring_is_true():
    assert doctest.testmod(sample).failed == 0


def test_what_is_right_becomes_conversations_that_can_be_learnt_from(starter, task, tmp_path):
    out = draw(starter, task, tmp_path, keep=2)
    rows = read_conversations(out.path / CONVERSATIONS).good
    assert len(rows) == out.meta["rows"] == out.meta["replies"]["kept"] >= 4
    for row in rows:
        assert row.messages[1].content in QUESTIONS
        assert "<answer>blue</answer>" in row.messages[-1].content
        assert row.meta["sampled"] is True
        assert row.meta["task"] == "colours"
    texts = [(row.messages[1].content, row.messages[-1].content) for row in rows]
    assert len(set(texts)) == len(texts)
    assert max(sum(q == question for q, _ in texts) for question in QUESTIONS) <= 2
    assert sum(out.meta["replies"].values()) == 2 * 4 * 6
    assert out.meta["replies"]["wrong"] > 5
    assert out.meta["kept_share"] == len(rows) / 48
    assert f"{len(rows)} conversations" in (out.path / "README.md").read_text()
    taught = draft(tmp_path / "taught")
    config = sft.Config(model="base", data="rows", epochs=1)
    sft.run(config, {"base": starter, "rows": artifact(out.path)}, fp32_run(tmp_path / "sft"), taught)
    assert (taught.path / "model.safetensors").exists()


def test_other_conversations_stand_among_them(starter, task, tmp_path):
    first = artifact(draw(starter, task, tmp_path / "first").path)
    out = draw(starter, task, tmp_path, inputs={"general": first}, beside="general")
    assert out.meta["beside"] == len(read_conversations(first.file(CONVERSATIONS)).good)
    assert out.meta["rows"] == 2 * out.meta["beside"]


def group(*replies):
    plain = Sample([1], [0.0], "stop", "", 1.0, {"answer": 1.0, "format": 1.0})
    return Group("colours", "all", "q", "blue", [1], [replace(plain, **reply) for reply in replies])


class Asks:
    """A task that only asks."""

    def conversation(self, example, thinking=True):
        from schoolhouse.tasks.task import question_conversation

        return question_conversation(example, thinking)


def test_every_reply_is_counted_by_why_it_was_left_out():
    harvest = Harvest(keep=2, repeats=0.3)
    round_ = "so blue it is then and "
    harvest.add(
        [
            group(
                {"text": "one"}, {"text": "one"}, {"text": round_ * 5}, {"finish_reason": "length"},
                {"parts": {"answer": 0.0, "format": 1.0}}, {"parts": {"answer": 0.0, "format": 0.0}}, {"text": "two"},
                {"text": "three"},
            )
        ],
        {"colours": Asks()},
    )  # fmt: skip
    assert harvest.replies == {
        "kept": 2, "one more": 2, "rambling": 1, "cut off": 1, "wrong": 1, "malformed": 1,
    }  # fmt: skip
    assert [row.messages[-1].content for row in harvest.kept] == ["one", "two"]


def test_replies_that_stray_into_another_language_are_left_out():
    harvest = Harvest(keep=9, repeats=1.0, language="en")
    english, mixed = "the blue box is on top", "the blue box is on top. Aber das ist falsch, also nochmal"
    harvest.add(
        [group(*({"text": f"<think>{x}</think><answer>blue</answer>"} for x in (english, mixed)))], {"colours": Asks()}
    )
    assert harvest.replies == {"kept": 1, "mixed languages": 1}


def test_nothing_right_is_an_error_that_says_what_there_was(starter, task, tmp_path):
    with pytest.raises(DataError, match=r"Of 48 replies none was right and readable \({'cut off': 48}\)"):
        draw(starter, task, tmp_path, max_new_tokens=8)


def test_interrupted_it_goes_on_to_the_same_conversations(starter, task, tmp_path):
    whole = draw(starter, task, tmp_path / "whole", rounds=3)
    run = fp32_run(tmp_path / "cut")
    run.log.step = lambda done, total=None, **figures: run.interrupted.set()
    with pytest.raises(Stopped, match="after round 1"):
        draw(starter, task, tmp_path / "cut", run, rounds=3)
    out = draw(starter, task, tmp_path / "cut", rounds=3)
    assert (out.path / CONVERSATIONS).read_bytes() == (whole.path / CONVERSATIONS).read_bytes()
    logged = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [row["done"] for row in logged if row["event"] == "step"] == [1, 2, 3]


def test_no_round_is_asked_twice_however_many_there_are(starter, task, tmp_path):
    draw(starter, task, tmp_path, rounds=KEPT + 2, prompts=1, group=1)
    assert len(list((tmp_path / "scratch" / "rollouts").iterdir())) == KEPT + 2


def test_spent_time_ends_it_with_what_there_is_or_says_so(starter, task, tmp_path):
    run = fp32_run(tmp_path)
    say = run.log.step

    def spend(done, total=None, **figures):
        say(done, total, **figures)
        run.limit_s = 0.0

    run.log.step = spend
    out = draw(starter, task, tmp_path, run, rounds=50)
    assert out.meta["rounds"] == 1
    run.has_share = False
    with pytest.raises(BudgetError, match="after round 0"):
        draw(starter, task, tmp_path / "two", run, rounds=50)


def test_numbers_that_do_not_fit_are_found_before_the_start(task):
    sample.check(settings(task))
    with pytest.raises(RecipeError, match="one number above 0"):
        sample.check(settings(task, weights=[1.0, 2.0]))
    with pytest.raises(RecipeError, match="language is 'eng'; did you mean 'en'"):
        sample.check(settings(task, language="eng"))
