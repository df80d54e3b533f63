"""What a part of a recipe brought: the same questions, an interval, and a plain sentence."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schoolhouse.core.config import references
from schoolhouse.core.errors import RecipeError
from schoolhouse.evaluate import ablation, report
from schoolhouse.evaluate.ablation import MEAN, Ablation, weigh
from schoolhouse.evaluate.compare import paired_difference

SYNTHESIS = Ablation(what="synthesis", model="full", without="plain")


def items(right, mode="thinking"):
    """Verdicts from model and task to whether each question was answered right."""
    return [
        {"mode": mode, "model": model, "task": task, "level": "1", "id": f"{task}/{i}", "correct": correct}
        for model, by_task in right.items()
        for task, answers in by_task.items()
        for i, correct in enumerate(answers)
    ]


def pairs(both, only_with, only_without, neither):
    with_it = [True] * (both + only_with) + [False] * (only_without + neither)
    without = [True] * both + [False] * only_with + [True] * only_without + [False] * neither
    return with_it, without


def one_task(*counts):
    with_it, without = pairs(*counts)
    return weigh(SYNTHESIS, items({"full": {"t": with_it}, "plain": {"t": without}}))


def test_a_gain_no_gain_and_a_loss_are_called_so():
    gain = one_task(300, 50, 15, 135)
    assert gain.sentence == "synthesis: +7.0 points (3.9 to 10.1): a gain"
    none = one_task(300, 30, 27, 143)
    assert none.sentence == "synthesis: no gain (+0.6 points, -2.4 to 3.6)"
    loss = one_task(300, 15, 50, 135)
    assert loss.sentence == "synthesis: -7.0 points (-10.1 to -3.9): a loss"
    assert [found.outcome for found in (gain, none, loss)] == ["a gain", "no gain", "a loss"]
    assert one_task(300, 0, 0, 100).sentence.startswith("synthesis: no gain (0.0 points, -")


def test_an_interval_is_newcombes_of_the_pairs():
    with_it, without = pairs(36, 12, 2, 0)
    effect = one_task(36, 12, 2, 0).tasks[0]
    expected = paired_difference(with_it, without)
    assert (effect.value, effect.interval, effect.n) == (expected.value, expected.interval, 50)
    assert effect.interval == pytest.approx((0.0569, 0.3404), abs=5e-5)  # Newcombe 1998, table III
    assert (effect.with_it, effect.without) == (0.96, 0.76)


def test_the_sentence_is_about_the_mean_over_tasks_each_counting_the_same():
    big, small = pairs(0, 200, 0, 200), pairs(10, 0, 10, 0)
    right = {"full": {"a": big[0], "b": small[0]}, "plain": {"a": big[1], "b": small[1]}}
    found = weigh(SYNTHESIS, items(right))
    assert [effect.task for effect in found.tasks] == ["a", "b"]
    assert [effect.outcome for effect in found.tasks] == ["a gain", "a loss"]
    assert found.overall.task == MEAN
    assert found.overall.value == pytest.approx((0.5 - 0.5) / 2)
    assert found.outcome == "no gain"
    assert found.overall.n == 420
    shown = ablation.table([found]).rows
    assert [row[1] for row in shown] == ["a", "b", MEAN]
    assert [row[-1] for row in shown] == ["a gain", "a loss", "no gain"]


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), min_size=1, max_size=4))
def test_without_and_with_turned_about_the_outcome_turns(tasks):
    right = {
        name: {str(i): [pair[side] for pair in task] for i, task in enumerate(tasks)}
        for side, name in enumerate(("full", "plain"))
    }
    there = weigh(SYNTHESIS, items(right)).overall
    back = weigh(Ablation(what="x", model="plain", without="full"), items(right)).overall
    assert there.interval.low <= there.value <= there.interval.high
    assert (back.value, *back.interval) == pytest.approx((-there.value, -there.interval.high, -there.interval.low))
    turned = {"a gain": "a loss", "a loss": "a gain"}
    assert back.outcome == turned.get(there.outcome, there.outcome)


def test_where_nothing_differs_a_gain_is_seen_in_about_one_of_forty_trials():
    rng = random.Random(3)
    seen = 0
    for _ in range(600):
        answers = [[rng.random() < p for _ in range(60)] for p in (0.6, 0.6, 0.3, 0.3)]
        right = {"full": {"a": answers[0], "b": answers[2]}, "plain": {"a": answers[1], "b": answers[3]}}
        seen += weigh(SYNTHESIS, items(right)).outcome == "a gain"
    assert seen / 600 < 0.045


def test_only_questions_that_both_were_asked_count():
    rows = items({"full": {"t": [True] * 8, "only": [True]}, "plain": {"t": [False] * 3}})
    found = weigh(SYNTHESIS, rows)
    assert [(effect.task, effect.n) for effect in found.tasks] == [("t", 3)]
    apart = weigh(SYNTHESIS, items({"full": {"a": [True]}, "plain": {"b": [True]}}))
    assert apart.overall is None
    assert apart.sentence == "synthesis: not tested, for both models answered no question together"
    assert ablation.table([apart]).rows == ()


def test_replies_after_thinking_count_and_without_those_the_others():
    right = {"full": {"t": [True] * 50}, "plain": {"t": [False] * 50}}
    turned = {"full": {"t": [False] * 50}, "plain": {"t": [True] * 50}}
    assert weigh(SYNTHESIS, items(turned, "direct") + items(right)).outcome == "a gain"
    direct = weigh(SYNTHESIS, items(turned, "direct"))
    assert (direct.mode, direct.outcome) == ("direct", "a loss")


def test_an_end_beside_0_is_not_written_as_0():
    found = ablation.Found(
        SYNTHESIS, "thinking", (ablation.Effect("t", 0.5, 0.4, 0.1, ablation.Interval(0.0002, 0.2), 9),)
    )
    assert found.sentence == "synthesis: +10.0 points (0.020 to 20.0): a gain"


def test_everything_is_plain_data():
    found = one_task(300, 50, 15, 135)
    row = json.loads(json.dumps(found.to_json()))
    assert row["what"] == "synthesis"
    assert (row["model"], row["without"], row["outcome"]) == ("full", "plain", "a gain")
    assert row["sentence"] == found.sentence
    assert [effect["task"] for effect in row["effects"]] == ["t"]
    assert row["effects"][0]["interval"] == list(found.tasks[0].interval)


def test_names_are_stages_and_mistakes_are_found_before_the_start():
    config = report.Config(exam="exam", ablations=[SYNTHESIS.model_dump()])
    assert references(config) == ["exam", "full", "plain"]
    report.check(config)
    same = {"what": "nothing", "model": "full", "without": "full"}
    with pytest.raises(RecipeError, match="model and without are both 'full'"):
        report.check(report.Config(exam="exam", ablations=[same]))
    with pytest.raises(RecipeError, match="two ablations are called 'synthesis'"):
        report.check(report.Config(exam="exam", ablations=[SYNTHESIS.model_dump()] * 2))
    with pytest.raises(ValidationError, match="without"):
        report.Config(exam="exam", ablations=[{"what": "x", "model": "full"}])


def test_a_model_that_did_not_sit_the_exam_is_named_with_those_that_did():
    exam = {"models": {"full": {}, "base": {}}}
    with pytest.raises(RecipeError, match="'plain' did not sit the exam 'finals'; models there: full, base"):
        ablation.check_names([SYNTHESIS], exam, "finals")
    ablation.check_names([Ablation(what="x", model="full", without="base")], exam, "finals")
